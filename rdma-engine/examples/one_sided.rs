//! Serves memory to RDMA READs, or measures such reads, as `ib_read_bw` and `ib_read_lat` do, but
//! with this crate's wrapper. For the tests and `cargo xtask vm bench`.
//!
//! ```text
//! one_sided serve ADDRESS:PORT                      prints the address once it listens
//! one_sided bandwidth ADDRESS:PORT SIZE DEPTH COUNT prints MiB/s
//! one_sided latency ADDRESS:PORT SIZE COUNT         prints the median in µs
//! one_sided volume DIRECTORY SIZE...                writes a volume with such needles, prints them
//! ```

#[path = "../tests/verbs/peer.rs"]
mod peer;
#[path = "../tests/verbs/volume.rs"]
mod volume;

use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rdma_engine::verbs::{Completion, RdmaRead, RegisteredBuffer, Timeouts};

use peer::{Result, SERVED, Served, Side, serve_one};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["serve", address] => listen(address),
        ["bandwidth", server, size, depth, count] => bandwidth(server, size, depth, count),
        ["latency", server, size, count] => latency(server, size, count),
        ["volume", directory, ref sizes @ ..] => make_volume(directory, sizes),
        _ => Err("see the first lines of this program's source".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listen(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    // One client after the other.
    loop {
        let (stream, _) = listener.accept()?;
        // Some tests break off the connection.
        if let Err(error) = serve_one(stream) {
            eprintln!("client: {error}");
        }
    }
}

/// Keeps `depth` reads in flight until `count` have completed.
fn bandwidth(server: &str, size: &str, depth: &str, count: &str) -> Result<()> {
    let (size, depth, count): (usize, usize, usize) = (size.parse()?, depth.parse()?, count.parse()?);
    let mut side = Side::open(None)?;
    let served = Served::connect(&side, server, Timeouts::default())?;
    let mut reads = Vec::new();
    let remote = served.memory.slice(0, size as u64).ok_or_else(|| format!("at most {SERVED} bytes"))?;
    reads.extend(side.slots(depth, size)?.into_iter().map(|memory| RdmaRead { memory, remote, token: 0 }));
    let mut posted = depth;
    let mut ended = 0;
    let mut done = Vec::new();
    let started = Instant::now();
    served.pair.post_reads(&mut reads)?;
    while ended < posted {
        wait(&mut side, &mut done)?;
        for completion in done.drain(..) {
            completion.result?;
            ended += 1;
            if posted < count {
                posted += 1;
                reads.extend(completion.memory.map(|memory| RdmaRead { memory, remote, token: 0 }));
            }
        }
        served.pair.post_reads(&mut reads)?;
    }
    served.stream.shutdown(Shutdown::Both)?;
    println!("{:.2}", (ended * size) as f64 / f64::from(1 << 20) / started.elapsed().as_secs_f64());
    Ok(())
}

/// One read after the other.
fn latency(server: &str, size: &str, count: &str) -> Result<()> {
    let (size, count): (usize, usize) = (size.parse()?, count.parse()?);
    let mut side = Side::open(None)?;
    let served = Served::connect(&side, server, Timeouts::default())?;
    let remote = served.memory.slice(0, size as u64).ok_or_else(|| format!("at most {SERVED} bytes"))?;
    let mut memory = side.slots(1, size)?.pop();
    let mut times = Vec::with_capacity(count);
    let mut done = Vec::new();
    for _ in 0..count.max(1) {
        let started = Instant::now();
        served.pair.post_reads(
            &mut memory.take().map(|memory| RdmaRead { memory, remote, token: 0 }).into_iter().collect(),
        )?;
        wait(&mut side, &mut done)?;
        times.push(started.elapsed());
        for completion in done.drain(..) {
            completion.result?;
            memory = completion.memory;
        }
    }
    served.stream.shutdown(Shutdown::Both)?;
    times.sort_unstable();
    println!("{:.2}", times[times.len() / 2].as_secs_f64() * 1e6);
    Ok(())
}

/// For an engine to serve.
fn make_volume(directory: &str, sizes: &[&str]) -> Result<()> {
    let sizes = sizes.iter().map(|size| size.parse()).collect::<std::result::Result<Vec<usize>, _>>()?;
    volume::write(Path::new(directory), &sizes);
    for key in (1..).take(sizes.len()) {
        println!("{}", volume::fid(key));
    }
    Ok(())
}

fn wait(side: &mut Side, done: &mut Vec<Completion<RegisteredBuffer>>) -> Result<()> {
    match side.poller.wait(done, Duration::from_secs(20))? {
        0 => Err("no completion within 20 s".into()),
        _ => Ok(()),
    }
}
