"""Operations worth a fast path; each has a slow twin that says what it computes."""
