
-- Version 8: search in the memory.

CREATE VIRTUAL TABLE memory_words USING fts5 (words, tokenize = 'porter unicode61 remove_diacritics 2', prefix = '3');
