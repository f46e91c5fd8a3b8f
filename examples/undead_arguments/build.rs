//! Compiles the C side.

fn main() {
    println!("cargo::rerun-if-changed=founding.c");
    cc::Build::new()
        .file("founding.c")
        .std("c11")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .compile("founding");
}
