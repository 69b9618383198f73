# Finds what it was told in its prompt.
mkdir -p store
grep "^> take" "$AIPASS_PROMPT_FILE" | sed 's/^> take //' > store/kind
echo "store/kind says $(cat store/kind)"
