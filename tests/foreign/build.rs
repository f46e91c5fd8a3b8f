//! Compiles the C side.

use std::process::Stdio;

fn main() {
    let sources =
        ["c/calls.c", "c/crossings.c", "c/founding.c", "c/late.c", "c/signals.c", "c/threads.c", "c/uv.c"];
    find_libuv();
    cc::Build::new()
        .files(sources)
        .std("c11")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .compile("reentry_foreign");
    for source in sources {
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
