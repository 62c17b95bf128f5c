//! Volume servers that answer badly: short, wrong, late, not at all. A proxy before a real one
//! injects the faults.
//!
//! Whatever arrives, a read gives the right bytes or EIO, in time, and the mount serves everything
//! else.

use std::fs;
use std::time::{Duration, Instant};

use tests::mount::Kind;
use tests::{Cluster, Fault, Mount, Pattern, data, eventually, host, reading};

/// No read may take longer: the mount retries for six seconds, and notices a stall in time.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const SIZE: usize = 3_000_000;

/// A mount that reaches volume servers through their proxies.
fn mount(cluster: &Cluster, retry: &str) -> Mount {
    let mount = Mount::builder(cluster);
    match mount.kind() {
        Kind::Weed => mount.args(["-volumeServerAccess=publicUrl", &format!("-readRetryTime={retry}")]),
        Kind::Interceptor => mount.args(["--volume-server-access", "publicUrl", "--read-retry-time", retry]),
    }
    .start()
    .unwrap()
}

const BROKEN: [(&str, Fault); 4] = [
    ("refused", Fault::Refuse),
    ("no head", Fault::CutAfter(20)),
    ("short", Fault::CutAfter(100_000)),
    ("wrong", Fault::Corrupt(50_000)),
];

const STALLED: [(&str, Fault); 2] =
    [("stalled in the head", Fault::StallAfter(10)), ("stalled in the body", Fault::StallAfter(100_000))];

/// Each fault gets a file of its own, which nothing has cached.
fn answers_badly_and_then_well(faults: &[(&str, Fault)]) {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).proxied().start().unwrap();
    let filer = cluster.filer();
    let expected = Pattern::new(1).bytes(0, SIZE);
    for (name, _) in faults.iter().chain(&[("good", Fault::None)]) {
        filer.put(&format!("/faults/{name}"), &expected, "").unwrap();
    }
    let mut mount = mount(&cluster, "2s");
    let proxy = &cluster.proxies()[0];
    for (name, fault) in faults {
        let path = mount.file(&format!("/faults/{name}"));
        proxy.set(*fault);
        let before = proxy.accepted();
        let started = Instant::now();
        let result = fs::read(&path);
        let took = started.elapsed();
        println!("{name}: {:?} after {took:?}", result.as_ref().map(Vec::len));
        assert!(took < WAIT_TIMEOUT, "{name}: that is too late");
        assert!(proxy.accepted() > before, "{name}: the read went another way");
        match result {
            Ok(read) => data::assert_same(name, &read, &expected),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}"),
        }
        assert!(mount.is_running(), "{name}");
        proxy.set(Fault::None);
        let healed = eventually("a good read", WAIT_TIMEOUT, || fs::read(&path).ok()).unwrap();
        data::assert_same(name, &healed, &expected);
    }
    reading::verify(&mount.file("/faults/good"), &expected);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_only_server_breaks_its_answers_and_then_does_well() {
    answers_badly_and_then_well(&BROKEN);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_only_server_stalls_and_then_does_well() {
    // A stall in the head is handled like one in the body and takes its time too: it is tried only
    // where there is a second server.
    answers_badly_and_then_well(&STALLED[1..]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn one_wrong_byte_never_reaches_the_reader() {
    if !host::can_mount() {
        return;
    }
    for cluster in [Cluster::builder().proxied(), Cluster::builder().proxied().encrypt()] {
        let cluster = cluster.start().unwrap();
        let filer = cluster.filer();
        // From the first byte of the head to the middle of the body.
        let places = [0, 9, 14, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 400, 5000, 20_000];
        let contents = [("random", Pattern::new(1).bytes(0, 60_000)), ("text.txt", data::text(2, 400_000))];
        for place in places {
            for (name, content) in &contents {
                filer.put(&format!("/wrong/{place}/{name}"), content, "").unwrap();
            }
        }
        let mut mount = mount(&cluster, "100ms");
        let proxy = &cluster.proxies()[0];
        for place in places {
            for (name, content) in &contents {
                let path = mount.file(&format!("/wrong/{place}/{name}"));
                proxy.set(Fault::Corrupt(place));
                match fs::read(&path) {
                    Ok(read) => {
                        data::assert_same(&format!("{name} with a wrong byte at {place}"), &read, content)
                    }
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name} at {place}: {error}")
                    }
                }
                proxy.set(Fault::None);
                let healed = eventually("a good read", WAIT_TIMEOUT, || fs::read(&path).ok()).unwrap();
                data::assert_same(name, &healed, content);
            }
        }
        assert!(mount.is_running());
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_fault_that_passes_is_ridden_out() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).proxied().start().unwrap();
    let filer = cluster.filer();
    let passing = [("refused", Fault::Refuse), ("short", Fault::CutAfter(100_000))];
    for (name, _) in passing {
        filer.put(&format!("/passing/{name}"), &Pattern::new(1).bytes(0, SIZE), "").unwrap();
    }
    let mount = mount(&cluster, "6s");
    let proxy = &cluster.proxies()[0];
    for (name, fault) in passing {
        let path = mount.file(&format!("/passing/{name}"));
        fs::metadata(&path).unwrap();
        proxy.set(fault);
        let before = proxy.accepted();
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| fs::read(&path));
            eventually("a broken try", WAIT_TIMEOUT, || (proxy.accepted() > before).then_some(())).unwrap();
            proxy.set(Fault::None);
            reader.join().unwrap()
        });
        data::assert_same(name, &read.unwrap(), &Pattern::new(1).bytes(0, SIZE));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_good_copy_stands_in_for_a_bad_one() {
    if !host::can_mount() {
        return;
    }
    let cluster =
        Cluster::builder().volume_servers(2).replication("001").max_mb(1).proxied().start().unwrap();
    let filer = cluster.filer();
    for (index, (name, _)) in BROKEN.iter().chain(&STALLED).enumerate() {
        filer.put(&format!("/copies/{name}"), &Pattern::new(index as u64).bytes(0, SIZE), "").unwrap();
    }
    let mount = mount(&cluster, "6s");
    for (index, (name, fault)) in BROKEN.iter().chain(&STALLED).enumerate() {
        cluster.proxies()[index % 2].set(*fault);
        let started = Instant::now();
        let read = fs::read(mount.file(&format!("/copies/{name}")));
        let took = started.elapsed();
        let read = read.unwrap_or_else(|error| panic!("{name}: {error} after {took:?}"));
        data::assert_same(name, &read, &Pattern::new(index as u64).bytes(0, SIZE));
        assert!(took < WAIT_TIMEOUT, "{name}: that is too late");
        cluster.proxies()[index % 2].set(Fault::None);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_chunk_that_no_server_has() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    let filer = cluster.filer();
    let content = Pattern::new(1).bytes(0, SIZE);
    filer.put("/missing", &content, "").unwrap();
    filer.put("/other", &content, "").unwrap();
    let mut mount = Mount::builder(&cluster).start().unwrap();
    let chunk = filer.chunks("/missing").unwrap()[1].clone();
    let fid = chunk["file_id"].as_str().unwrap();
    assert_eq!(chunk["offset"], 1 << 20);
    let address = cluster.volume_servers()[0].address();
    ureq::delete(format!("http://{address}/{fid}")).call().unwrap();
    // A server remembers deleted needles, and gives them to readers that ask, until their volume
    // is compacted.
    let gone = || {
        cluster.master().get("/vol/vacuum?garbageThreshold=0.0001").ok()?;
        let answer = cluster.volume_servers()[0].get(&format!("/{fid}?readDeleted=true"));
        format!("{:#}", answer.err()?).contains("404").then_some(())
    };
    eventually("the end of the needle", WAIT_TIMEOUT, gone).unwrap();

    let path = mount.file("/missing");
    let started = Instant::now();
    assert_eq!(reading::error_of(&path), libc::EIO);
    assert!(started.elapsed() < WAIT_TIMEOUT, "EIO after {:?}", started.elapsed());
    let file = fs::File::open(&path).unwrap();
    let mut tail = vec![0; SIZE - (2 << 20)];
    let read = eventually("the chunk behind", WAIT_TIMEOUT, || {
        reading::forget(&path).ok()?;
        reading::read_full(&file, &mut tail, 2 << 20).ok()
    });
    assert_eq!(read.unwrap(), tail.len());
    data::assert_same("the chunk behind", &tail, &content[2 << 20..]);
    reading::verify(&mount.file("/other"), &content);
    assert!(mount.is_running());
}
