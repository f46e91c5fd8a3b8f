//! Compiles the C side.

fn main() {
    let sources = ["c/calls.c", "c/crossings.c", "c/founding.c", "c/threads.c", "c/contexts.c"];
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
    println!("cargo::rustc-link-lib=pthread");
}
