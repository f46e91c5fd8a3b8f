//! stacks.
