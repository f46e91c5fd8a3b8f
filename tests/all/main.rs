//! The suite: one binary, a module for each topic.
#![expect(missing_docs, reason = "tests are named for the behaviour they check")]
mod founding;
