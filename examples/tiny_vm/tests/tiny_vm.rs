//! The program sorts its strings, which move while C sorts them.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn the_strings_are_sorted_while_they_move() {
    let output = Command::new(env!("CARGO_BIN_EXE_tiny_vm")).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let sorted = r#"[("Apple", 5), ("banana", 6), ("Cherry", 6), ("fig", 3), ("pear", 4)]"#;
    assert!(said.starts_with(sorted), "{said}");
    assert!(said.ends_with(" collections, each of which moved every string\n"), "{said}");
}

/// A reference that no root holds would be stale, and `Heap::index` panics.
#[test]
fn the_strings_are_sorted_though_each_crossing_and_poll_collects() {
    let mut stressed = Command::new(env!("CARGO_BIN_EXE_tiny_vm"));
    let output = stressed.env("REENTRY_STRESS", "collect").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let collections = said.lines().nth(1).and_then(|line| line.split(' ').next()?.parse::<u32>().ok());
    let expected = if cfg!(debug_assertions) { 40 } else { 1 };
    assert!(collections.is_some_and(|collections| collections >= expected), "{said}");
}
