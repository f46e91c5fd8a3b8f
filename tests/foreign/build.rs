//! Compiles the C side, and the C++ side.

mod abi;

use std::path::PathBuf;
use std::process::Stdio;

fn main() {
    let sources = [
        "c/calls.c",
        "c/checked.c",
        "c/contexts.c",
        "c/crossings.c",
        "c/errors.c",
        "c/founding.c",
        "c/handles.c",
        "c/jumps.c",
        "c/late.c",
        "c/signals.c",
        "c/threads.c",
        "c/uv.c",
    ];
    find_libuv();
    cc::Build::new()
        .files(sources)
        .std("c11")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .compile("reentry_foreign");
    let cpp_sources = ["c/exceptions.cpp"];
    cc::Build::new()
        .cpp(true)
        .files(cpp_sources)
        .std("c++17")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .compile("reentry_foreign_cpp");
    compile_abi();
    for source in sources.into_iter().chain(cpp_sources).chain(["c/abi.h"]) {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rustc-link-lib=uv");
    println!("cargo::rustc-link-lib=pthread");
}

/// Generates the C side of the tests of dynamic calls, and compiles it.
///
/// # Panics
///
/// If the file cannot be written.
fn compile_abi() {
    let target = |key: &str| std::env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    let source = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo sets it")).join("abi.c");
    let win64 = target("ARCH") == "x86_64" && target("FAMILY").contains("unix");
    std::fs::write(&source, abi::generate(win64)).expect("the output directory can be written to");
    cc::Build::new()
        .file(source)
        .include("c")
        .std("gnu11")
        .opt_level(1)
        .warnings(true)
        .extra_warnings(true)
        .compile("reentry_foreign_abi");
}

/// Looks for libuv.
///
/// # Panics
///
/// If it is not there: says what to install, in place of a page of compiler errors.
fn find_libuv() {
    let mut look = cc::Build::new().get_compiler().to_command();
    let look = look.args(["-E", "-include", "uv.h", "-x", "c", "/dev/null"]);
    let found = look.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(
        found.is_ok_and(|status| status.success()),
        "the tests need libuv's header `uv.h`, which the C compiler does not find; install it: `apt-get install libuv1-dev` on Debian"
    );
}
