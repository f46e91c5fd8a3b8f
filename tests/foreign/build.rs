//! Compiles the C side; the C++ side and libuv's too, if there is a C++ compiler and `uv.h`.
#![expect(clippy::missing_panics_doc, reason = "a build script fails by panicking")]

mod abi;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

const SOURCES: [&str; 13] = [
    "c/calls.c",
    "c/checked.c",
    "c/contexts.c",
    "c/crossings.c",
    "c/errors.c",
    "c/handles.c",
    "c/jumps.c",
    "c/late.c",
    "c/missing.c",
    "c/nest.c",
    "c/signals.c",
    "c/threads.c",
    // The example's own.
    "../../examples/undead_arguments/founding.c",
];

/// Set where nothing may be left out: what is missing is an error then.
const LEAVE_NOTHING_OUT: &str = "REENTRY_LEAVE_NOTHING_OUT";

fn main() {
    println!("cargo::rerun-if-env-changed={LEAVE_NOTHING_OUT}");
    println!("cargo::rustc-check-cfg=cfg(cpp, libuv)");
    let cpp = compiles(true, "#include <cstddef>\nint main() { throw 1; }\n");
    let libuv = compiles(false, "#include <uv.h>\n");
    let mut c = cc::Build::new();
    c.files(SOURCES);
    if cpp {
        println!("cargo::rustc-cfg=cpp");
    } else {
        missing("a C++ compiler (Debian: g++)", "/usr/bin");
        c.define("WITHOUT_CPP", None);
    }
    if libuv {
        println!("cargo::rustc-cfg=libuv");
        c.file("c/uv.c");
    } else {
        missing("libuv's header `uv.h` (Debian: libuv1-dev)", "/usr/include");
        c.define("WITHOUT_LIBUV", None);
    }
    c.std("c11").opt_level(2).warnings(true).extra_warnings(true).compile("reentry_foreign");
    // Once more without unwind tables, as some libraries are.
    cc::Build::new()
        .file("c/nest.c")
        .define("BARE", None)
        .flag("-fno-asynchronous-unwind-tables")
        .flag("-fno-unwind-tables")
        .flag("-fno-exceptions")
        .std("c11")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .compile("reentry_foreign_bare");
    if cpp {
        cc::Build::new()
            .cpp(true)
            .file("c/exceptions.cpp")
            .std("c++17")
            .opt_level(2)
            .warnings(true)
            .extra_warnings(true)
            .compile("reentry_foreign_cpp");
    }
    compile_abi();
    compile_library();
    for source in SOURCES.into_iter().chain(["c/uv.c", "c/exceptions.cpp", "c/abi.h"]) {
        println!("cargo::rerun-if-changed={source}");
    }
    if libuv {
        println!("cargo::rustc-link-lib=uv");
    }
    println!("cargo::rustc-link-lib=pthread");
}

/// Compiles the C that is a shared library of its own, for tests that load and unload it.
///
/// # Panics
///
/// If the compiler fails.
fn compile_library() {
    let library = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo sets it")).join("libdestructor.so");
    let mut build = cc::Build::new();
    let mut compile = build.std("gnu11").opt_level(2).pic(true).get_compiler().to_command();
    // A sanitizer's runtime would have to be loaded before the program's own, and the library comes late.
    compile.args(["-fno-sanitize=all", "-shared", "c/destructor.c", "-lpthread", "-o"]).arg(&library);
    assert!(compile.status().is_ok_and(|status| status.success()), "{compile:?} failed");
    println!("cargo::rustc-env=FOREIGN_DESTRUCTOR_LIBRARY={}", library.display());
    println!("cargo::rerun-if-changed=c/destructor.c");
}

/// Generates the C side of the tests of dynamic calls, and compiles it.
fn compile_abi() {
    let target = |key: &str| env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    let source = out().join("abi.c");
    let win64 = target("ARCH") == "x86_64" && target("FAMILY").contains("unix");
    fs::write(&source, abi::generate(win64)).expect("the output directory can be written to");
    cc::Build::new()
        .file(source)
        .include("c")
        .std("gnu11")
        .opt_level(1)
        .warnings(true)
        .extra_warnings(true)
        .compile("reentry_foreign_abi");
}

fn out() -> PathBuf {
    env::var_os("OUT_DIR").expect("Cargo sets it").into()
}

/// Whether the compiler, that of C++ or that of C, is there and takes this program.
fn compiles(cpp: bool, program: &str) -> bool {
    let source = out().join(if cpp { "probe.cpp" } else { "probe.c" });
    fs::write(&source, program).expect("the output directory can be written to");
    let Ok(compiler) = cc::Build::new().cpp(cpp).cargo_warnings(false).try_get_compiler() else {
        return false;
    };
    let mut probe = compiler.to_command();
    probe.arg("-c").arg(&source).arg("-o").arg(out().join("probe.o"));
    probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Notes that something is missing, and looks again when `installed`, a directory, has changed.
fn missing(what: &str, installed: &str) {
    assert!(env::var_os(LEAVE_NOTHING_OUT).is_none(), "{what} is missing, and {LEAVE_NOTHING_OUT} is set");
    println!("cargo::rerun-if-changed={installed}");
}
