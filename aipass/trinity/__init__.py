"""What an agent knows of itself from run to run: three files for eyes, rows in the ledger behind them."""
