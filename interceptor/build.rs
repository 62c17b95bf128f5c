//! Translates `proto/filer.proto` with a compiler written in Rust, so that building needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/filer.proto");
    let descriptors = protox::compile(["filer.proto"], ["proto"])?;
    // Bytes fields stay `Vec`: as slices of the receive buffer a few kept bytes would hold all of it.
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
