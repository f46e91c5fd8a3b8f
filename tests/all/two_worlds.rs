//! Two worlds.
