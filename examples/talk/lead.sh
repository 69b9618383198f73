# Asks first, goes on with the answer, and is woken when the work is done.
if grep -q "^What you asked of builder" "$AIPASS_PROMPT_FILE"; then
    echo "The store is built:"
    grep "^>" "$AIPASS_PROMPT_FILE"
elif grep -q "^human answers:" "$AIPASS_PROMPT_FILE"; then
    aipass note "the store is kept in $(tail -n 1 "$AIPASS_PROMPT_FILE")"
    aipass message builder "take $(tail -n 1 "$AIPASS_PROMPT_FILE")"
    aipass send builder "Build the store" --wake
    echo "builder works on it"
else
    aipass ask human "Postgres or SQLite?" --options Postgres,SQLite
    echo "I wait for an answer"
fi
