//! A cluster with TLS: mutual on gRPC and with engines, and on the volume servers' HTTP.

use std::fs;
use std::time::Duration;

use rdma_engine::Refusal;
use rdma_engine::client::{Client, ClientOptions, ReadError};
use rdma_engine::protocol::Transport;
use tests::certificates::Authority;
use tests::{Cluster, Mount, Pattern, data, host, reading};

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn everything_over_tls() {
    if !host::can_mount() {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    let (ours, foreign) =
        (Authority::new("the cluster's authority"), Authority::new("somebody else's authority"));
    ours.write(keys.path());
    ours.issue(keys.path(), "member");
    foreign.issue(keys.path(), "stranger");
    let at = |name: &str| keys.path().join(name).display().to_string();
    let (ca, certificate, key) = (at("ca.crt"), at("member.crt"), at("member.key"));
    let identity = format!("cert = \"{certificate}\"\nkey = \"{key}\"\n");
    let grpc = format!(
        "[grpc]\nca = \"{ca}\"\n[grpc.master]\n{identity}[grpc.volume]\n{identity}[grpc.filer]\n{identity}\
         [grpc.client]\n{identity}"
    );
    let https = format!(
        "[https.volume]\n{identity}ca = \"{ca}\"\n[https.client]\nenabled = true\n{identity}ca = \"{ca}\"\n"
    );
    let cluster = Cluster::builder().max_mb(1).settings(&grpc).settings(&https).start().unwrap();
    let filer = cluster.filer();
    let (random, text) = (Pattern::new(1).bytes(0, 2_500_000), data::text(2, 2_500_000));
    filer.put("/tls/random", &random, "").unwrap();
    filer.put("/tls/text.txt", &text, "").unwrap();
    assert!(cluster.volume_servers()[0].get("/status").is_err(), "the volume server speaks plain HTTP");

    let mut mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/tls/random"), &random);
    reading::verify(&mount.file("/tls/text.txt"), &text);
    filer.put("/tls/random", b"changed", "").unwrap();
    let changed = || fs::read(mount.file("/tls/random")).ok().filter(|read| read == b"changed").map(drop);
    tests::eventually("the change", Duration::from_secs(5), changed).unwrap();
    assert!(mount.is_running());
    drop(mount);

    // An engine with the cluster's files is asked under TLS, too.
    let engines = Mount::builder(&cluster).engines(&cluster, "tcp").start().unwrap();
    reading::verify(&engines.file("/tls/text.txt"), &text);
    let engine = &cluster.engines()[0];
    assert!(engine.metric("rdma_engine_reads_total{transport=\"tcp\"}").unwrap() > 0);
    drop(engines);
    let options = ClientOptions { transports: vec![Transport::Tcp], ..ClientOptions::default() };
    let plain = Client::new(engine.address(), options);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let soon = || tokio::time::Instant::now() + Duration::from_secs(10);
    let refused = runtime.block_on(async { plain.ping(soon()).await.unwrap_err() });
    assert_eq!(refused, ReadError::Refused(Refusal::TlsNeeded));

    // A client without a key of the cluster, or with one of another authority, gets no mount but
    // the reason.
    let error = Mount::interceptor(&cluster.filer_addresses()).start().unwrap_err();
    assert!(format!("{error:#}").contains(&cluster.filer_addresses()), "{error:#}");
    let settings = keys.path().join("stranger.toml");
    let stranger = format!("cert = \"{}\"\nkey = \"{}\"\n", at("stranger.crt"), at("stranger.key"));
    fs::write(&settings, format!("[grpc]\nca = \"{ca}\"\n[grpc.client]\n{stranger}")).unwrap();
    let error = Mount::interceptor(&cluster.filer_addresses()).security(&settings).start().unwrap_err();
    assert!(format!("{error:#}").contains(&cluster.filer_addresses()), "{error:#}");
}
