//! Where the linker finds the libraries that `STUB_LIBRARIES` has: `cargo xtask package` sets the
//! variable, as it links for another system than this host.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=STUB_LIBRARIES");
    if let Ok(directory) = std::env::var("STUB_LIBRARIES") {
        println!("cargo::rustc-link-search=native={directory}");
    }
}
