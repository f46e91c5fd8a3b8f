//! The text of signatures and types: what is read, what is refused and where, and that what is printed is read again.
