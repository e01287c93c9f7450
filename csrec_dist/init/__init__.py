"""`csrec-dist init LOG`: looks at a raw log, decides or asks how to read and cut it, and writes a commented config."""
