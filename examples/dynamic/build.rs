//! Makes the shared libraries that the scripts open, SQLite and zlib, of the C that two crates bundle. The program
//! looks for libraries where this script puts them first, so the scripts run the same with or without the system's.
#![expect(clippy::missing_panics_doc, reason = "a build script fails by panicking")]

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `zlib.c` exports again.
const OF_ZLIB: [&str; 6] = ["zlibVersion", "crc32", "adler32", "compressBound", "compress2", "uncompress"];

fn main() {
    println!("cargo::rerun-if-changed=zlib.c");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        // There the scripts open what the system has.
        return;
    }
    let out = directory("OUT_DIR");
    share_sqlite(&directory("DEP_SQLITE3_LIB_DIR"), &out);
    share_zlib(&directory("DEP_Z_ROOT"), &out);
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{}", out.display());
    let compiler = cc::Build::new().get_compiler();
    if compiler.args().iter().any(|flag| flag.to_string_lossy().starts_with("-fsanitize")) {
        // The libraries find the sanitizer's functions in the program.
        println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic");
    }
}

fn share_sqlite(library: &Path, out: &Path) {
    link([
        "-shared".as_ref(),
        "-o".as_ref(),
        out.join("libsqlite3.so.0").as_os_str(),
        "-Wl,--whole-archive".as_ref(),
        library.join("libsqlite3.a").as_os_str(),
        "-Wl,--no-whole-archive".as_ref(),
        "-lm".as_ref(),
        "-lpthread".as_ref(),
        "-ldl".as_ref(),
    ]);
}

fn share_zlib(root: &Path, out: &Path) {
    let (hidden, shown) = (out.join("hidden.o"), "zlib_shown");
    link([
        "-r".as_ref(),
        "-nostdlib".as_ref(),
        "-o".as_ref(),
        hidden.as_os_str(),
        "-Wl,--whole-archive".as_ref(),
        root.join("lib/libz.a").as_os_str(),
    ]);
    let mut rename = Command::new(beside_the_compiler("objcopy"));
    for name in OF_ZLIB {
        rename.arg("--redefine-sym").arg(format!("{name}=bundled_{name}"));
    }
    run(rename.arg(&hidden));
    cc::Build::new()
        .file("zlib.c")
        .include(root.join("include"))
        .warnings(true)
        .extra_warnings(true)
        .cargo_metadata(false)
        .compile(shown);
    link([
        "-shared".as_ref(),
        "-o".as_ref(),
        out.join("libz.so.1").as_os_str(),
        "-Wl,--whole-archive".as_ref(),
        out.join(format!("lib{shown}.a")).as_os_str(),
        "-Wl,--no-whole-archive".as_ref(),
        hidden.as_os_str(),
    ]);
}

fn directory(variable: &str) -> PathBuf {
    env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set")).into()
}

/// Links with the C compiler, but for the flags of the environment: the program brings a sanitizer's library along.
fn link<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) {
    run(Command::new(cc::Build::new().get_compiler().path()).args(arguments));
}

/// Where the compiler has this tool: also one that compiles for another machine has its own.
fn beside_the_compiler(tool: &str) -> String {
    let compiler = cc::Build::new().get_compiler();
    let asked = Command::new(compiler.path()).arg(format!("-print-prog-name={tool}")).output();
    let path = asked.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    if path.trim().is_empty() { tool.to_owned() } else { path.trim().to_owned() }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
