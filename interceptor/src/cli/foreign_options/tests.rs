//! Each spelling of each option, against the real command line.

use clap::CommandFactory;

use super::*;

/// `interceptor mount`, as the program defines it.
fn mount_command() -> Command {
    let mut cli = crate::cli::Cli::command();
    cli.build();
    cli.find_subcommand("mount").expect("the command exists").clone()
}

fn translated(list: &str) -> Result<TranslatedOptions, String> {
    let options = split_list(list).map_err(|error| error.to_string())?;
    translate(&options, &mount_command(), false).map_err(|error| error.to_string())
}

fn arguments(list: &str) -> Vec<String> {
    translated(list).unwrap().arguments
}

fn typed(line: &[&str]) -> Result<Vec<String>, String> {
    let line: Vec<OsString> = line.iter().map(OsString::from).collect();
    let (arguments, _) = translate_arguments(&line, &mount_command()).map_err(|error| error.to_string())?;
    Ok(arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect())
}

#[test]
fn options_of_ours_are_taken_under_their_long_names() {
    assert_eq!(arguments("cache-size=8GiB,ro,_netdev"), ["--cache-size=8GiB"]);
    assert_eq!(arguments("cache_size=8GiB,allow_other"), ["--cache-size=8GiB", "--allow-other"]);
    assert_eq!(arguments("nonempty,no-ebpf,no_passthrough"), ["--nonempty", "--no-ebpf", "--no-passthrough"]);
    assert_eq!(arguments("noexec,nosymfollow"), ["--noexec", "--nosymfollow"]);
    // Each option that exists can be given.
    for option in mount_command().get_arguments().filter_map(Arg::get_long).filter(|name| *name != "help") {
        assert_eq!(arguments(&format!("{option}=x")), [format!("--{option}=x")]);
    }
}

#[test]
fn options_that_mount_keeps_for_itself_are_dropped() {
    for name in HANDLED_BY_MOUNT {
        assert_eq!(translated(name), Ok(TranslatedOptions::default()), "{name}");
    }
    let fstab = "rw,user=jo,comment=x,x-systemd.automount,x-systemd.requires=a.service,X-mount.mkdir,nofail";
    assert_eq!(translated(fstab), Ok(TranslatedOptions::default()));
    assert_eq!(translated(""), Ok(TranslatedOptions::default()));
    assert_eq!(translated(",,"), Ok(TranslatedOptions::default()));
}

#[test]
fn options_of_mount_that_cannot_be_had_say_why() {
    for (name, _) in REFUSED_OF_MOUNT {
        let error = translated(&format!("{name}=1")).unwrap_err();
        assert!(error.contains(name) && error.contains("cannot be taken"), "{error}");
    }
}

#[test]
fn options_of_weed_mean_what_they_mean_there() {
    assert_eq!(
        arguments("filer='a:8888,b:8888',filer.path=/x,cacheCapacityMB=512,allowOthers,nonempty=false"),
        [
            "--filer=a:8888,b:8888",
            "--filer-path=/x",
            "--cache-size=512MiB",
            "--allow-other=true",
            "--nonempty=false"
        ]
    );
    assert_eq!(
        arguments("cacheDir=/nvme,cacheCapacityMB=2048"),
        ["--disk-cache=/nvme", "--disk-cache-size=2048MiB"]
    );
    assert_eq!(
        arguments("map.uid=1:2,map.gid=3:4,dataCenter=d,readRetryTime=6s,volumeServerAccess=filerProxy"),
        [
            "--map-uid=1:2",
            "--map-gid=3:4",
            "--data-center=d",
            "--read-retry-time=6s",
            "--volume-server-access=filerProxy"
        ]
    );
    // Written as those of other file systems, they are our own.
    assert_eq!(arguments("uid=5,gid=6,umask=022"), ["--uid=5", "--gid=6", "--umask=022"]);
    assert!(translated("fmask=0133").unwrap_err().contains("file-mode"));
    assert_eq!(translated("dir=/mnt/x").unwrap().mount_point.as_deref(), Some("/mnt/x"));
    assert_eq!(arguments("readOnly,readOnly=true,defaultPermissions=true"), [""; 0]);
    assert!(translated("readOnly=false").unwrap_err().contains("always"));
    assert!(translated("filer.path").unwrap_err().contains("needs a value"));
    assert!(translated("options=/etc/weed").unwrap_err().contains("config=FILE"));
}

#[test]
fn every_option_of_weed_is_understood_or_answered() {
    let command = mount_command();
    for (name, is_switch, meaning) in WEED_OPTIONS {
        let option = TypedOption { name: (*name).into(), value: (!is_switch).then(|| "1".into()) };
        match (translate(&[option], &command, false), meaning) {
            (Err(ForeignOptionError::Refused { reason, .. }), Refused(known)) => assert_eq!(reason, *known),
            (Ok(translated), Nothing) => assert_eq!(translated.ignored, [*name]),
            (Ok(translated), Named(own)) => {
                assert!(own_option(own, &command).is_some(), "{name} names {own}, which is no option");
                assert_eq!(translated.arguments.len(), 1, "{name}");
            }
            (Ok(_), AlwaysOn | MountPoint | CacheMebibytes) => {}
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn an_unknown_option_names_the_nearest_known_one() {
    for (wrong, right) in [
        ("cache-sizes=1G", "cache-size"),
        ("cachesize=1G", "cache-size"),
        ("CacheCapacityMB=5", "cacheCapacityMB"),
        ("filerpath=/x", "filer.path"),
        ("statusaddr=none", "status-addr"),
        ("nofial", "nofail"),
    ] {
        let error = translated(wrong).unwrap_err();
        assert!(error.contains(&format!("nearest known one is {right:?}")), "{wrong}: {error}");
    }
    assert_eq!(translated("zzz").unwrap_err(), "unknown option \"zzz\"");
    let sloppy = translate(&split_list("zzz,ro").unwrap(), &mount_command(), true).unwrap();
    assert_eq!(sloppy.ignored, ["zzz"]);
}

#[test]
fn a_list_may_quote_its_commas() {
    let values = |list: &str| -> Vec<_> {
        split_list(list).unwrap().into_iter().map(|option| option.value.unwrap_or_default()).collect()
    };
    assert_eq!(values(r#"filer="a:1,b:2",x=3"#), ["a:1,b:2", "3"]);
    assert_eq!(values(r"filer=a:1\,b:2,x=3\\"), ["a:1,b:2", r"3\"]);
    assert_eq!(values("x='it\"s'"), ["it\"s"]);
    assert!(split_list("filer='a:1").is_err());
}

#[test]
fn arguments_of_weed_become_ours() {
    assert_eq!(
        typed(&["-filer=a:8888", "-dir=/mnt/x", "-filer.path=/p", "-cacheCapacityMB", "64"]).unwrap(),
        ["--filer=a:8888", "--filer-path=/p", "--cache-size=64MiB", "--", "/mnt/x"]
    );
    assert_eq!(
        typed(&["--filer.path=/p", "--filer", "a:8888", "-allowOthers", "-o", "ro,cache-size=64MiB", "/mnt"])
            .unwrap(),
        ["--filer", "a:8888", "/mnt", "--filer-path=/p", "--allow-other=true", "--cache-size=64MiB"]
    );
    assert_eq!(typed(&["-oro,no-ebpf", "/mnt"]).unwrap(), ["/mnt", "--no-ebpf"]);
    assert_eq!(typed(&["-cache-size=1GiB", "/mnt"]).unwrap(), ["/mnt", "--cache-size=1GiB"]);
    assert!(typed(&["-cachesize=1GiB", "/mnt"]).unwrap_err().contains("\"cache-size\""));
    assert!(typed(&["-options=/etc/weed"]).unwrap_err().contains("config=FILE"));
    assert!(typed(&["-o"]).unwrap_err().contains("needs a value"));
}

#[test]
fn arguments_of_ours_stay_as_they_are() {
    for line in [
        &["--filer", "a:8888", "--filer-path", "-dir", "/mnt"][..],
        &["--no-ebpf", "--nonempty", "/mnt"],
        &["-h"],
        &["--nonsense", "/mnt"],
        &["--filer", "a:8888", "--", "-dir=x"],
    ] {
        assert_eq!(typed(line).unwrap(), line);
    }
}

#[test]
fn a_source_has_filers_and_a_directory() {
    let split = |text: &str| split_source(OsStr::new(text));
    let both = |filers: &str, path: &str| Some((filers.to_owned(), Some(path.to_owned())));
    assert_eq!(split("filer:8888:/buckets/train"), both("filer:8888", "/buckets/train"));
    assert_eq!(split("filer:8888/buckets/train"), both("filer:8888", "/buckets/train"));
    assert_eq!(split("a:8888,b:8888:/"), both("a:8888,b:8888", "/"));
    assert_eq!(split("[::1]:8888:/x:y"), both("[::1]:8888", "/x:y"));
    assert_eq!(split("filer:8888.18888:/x"), both("filer:8888.18888", "/x"));
    assert_eq!(split("filer:8888"), Some(("filer:8888".into(), None)));
    // The parser of --filer then says that the port is missing.
    assert_eq!(split("filer:/x"), both("filer", "/x"));
    for none in ["fuse", "none", "", "/", "/dev/sda"] {
        assert_eq!(split(none), None, "{none}");
    }
}

proptest::proptest! {
    #[test]
    fn any_list_is_taken_apart_or_refused(list in ".*") {
        let _ = split_list(&list).map(|options| translate(&options, &mount_command(), false));
    }
}
