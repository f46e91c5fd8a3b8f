//! Compiles the C side, and the C++ side.

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
        "c/threads.c",
    ];
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
    println!("cargo::rustc-link-lib=pthread");
}
