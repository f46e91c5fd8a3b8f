//! Compiles the C side, and the C++ side.

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
    for source in sources.into_iter().chain(cpp_sources) {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rustc-link-lib=uv");
    println!("cargo::rustc-link-lib=pthread");
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
