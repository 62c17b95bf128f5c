//! The command line of `weed mount`, and what becomes of it for the real program, for `interceptor
//! mount` and for `interceptor attach`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Command;

use crate::cli::built;
use crate::cli::foreign_options::{self, ForeignOptionError, TypedOption, split_weed_arguments};
use crate::cli::options::MIN_DISK_CACHE_SIZE;

/// Options that are dealt with here.
const OWN_OPTIONS: [&str; 4] = ["dir", "dirAutoCreate", "localSocket", "readOnly"];

/// `-umask` of `weed mount` if it is not given.
const DEFAULT_UMASK: &str = "022";

/// A volume, as the arguments of `weed mount` describe it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct VolumeArguments {
    /// What stands before `mount`: how `weed` logs.
    log_options: Vec<OsString>,
    options: Vec<TypedOption>,
    /// Where the volume is to be mounted.
    pub(super) mount_point: PathBuf,
}

/// Options of one of our commands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TranslatedArguments {
    pub(super) arguments: Vec<OsString>,
    /// Options of `weed` that mean nothing to it.
    pub(super) ignored: Vec<String>,
}

impl VolumeArguments {
    /// The volume, if the arguments (without the program's name) are those of `weed mount`.
    ///
    /// # Errors
    /// When there is no working directory for a relative mount point.
    pub(super) fn parse(arguments: &[OsString]) -> anyhow::Result<Option<Self>> {
        let Some(at) = mount_word(arguments) else { return Ok(None) };
        let options = split_weed_arguments(&arguments[at + 1..]);
        let directory = last(&options, "dir").and_then(|option| option.value.as_deref()).unwrap_or(".");
        ensure!(!directory.is_empty(), "-dir names no directory to mount on: -dir=/mnt/data");
        let mount_point = std::path::absolute(directory).context("-dir")?;
        Ok(Some(Self { log_options: arguments[..at].to_vec(), options, mount_point }))
    }

    /// Whether nothing can be written to the volume.
    pub(super) fn is_read_only(&self) -> bool {
        self.is_on("readOnly")
    }

    /// Where the driver reaches the mount.
    pub(super) fn local_socket(&self) -> Option<&Path> {
        self.value("localSocket").map(Path::new)
    }

    /// The permissions of the mount point, if it is to be made where it is missing.
    pub(super) fn created_mode(&self) -> Option<u32> {
        let umask = u32::from_str_radix(self.value("umask").unwrap_or(DEFAULT_UMASK), 8);
        self.is_on("dirAutoCreate").then(|| 0o777 & !umask.unwrap_or_default())
    }

    /// Arguments of the real program that mount the volume on another directory.
    pub(super) fn for_weed(&self, mount_point: &Path) -> Vec<OsString> {
        let mut arguments = self.log_options.clone();
        arguments.push("mount".into());
        for option in self.options.iter().filter(|option| option.name != "dir") {
            let value = option.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
            arguments.push(format!("-{}{value}", option.name).into());
        }
        arguments.push([OsString::from("-dir="), mount_point.into()].into_iter().collect());
        arguments
    }

    /// Arguments of `interceptor`, with which it mounts the volume.
    ///
    /// # Errors
    /// When it cannot do what an option asks for.
    pub(super) fn for_mount(&self) -> Result<TranslatedArguments, ForeignOptionError> {
        let program = built();
        let command = program.find_subcommand("mount").expect("the command exists");
        let foreign_options::TranslatedOptions { arguments, ignored, .. } =
            foreign_options::translate(&self.translatable_options(), command, false)?;
        let line = ["mount".to_owned()].into_iter().chain(arguments).chain(["--".to_owned()]);
        let arguments = line.map(OsString::from).chain([self.mount_point.clone().into()]).collect();
        Ok(TranslatedArguments { arguments, ignored })
    }

    /// Arguments of `interceptor`, with which it attaches a layer to the real mount of the volume
    /// at `mount_point`. What the layer has no option for, the real mount does.
    ///
    /// # Errors
    /// When a value cannot be understood.
    pub(super) fn for_attach(
        &self,
        mount_point: &Path,
        grace: std::time::Duration,
    ) -> Result<Vec<OsString>, ForeignOptionError> {
        let program = built();
        let [mount, attach] =
            ["mount", "attach"].map(|name| program.find_subcommand(name).expect("the command exists"));
        // `-s` of mount(8): an option that only a newer `weed` knows is left to that.
        let translated = foreign_options::translate(&self.layer_options(mount), mount, true)?.arguments;
        let known = translated.into_iter().filter(|argument| has_option(attach, argument));
        let line = ["attach".to_owned(), format!("--grace={}ms", grace.as_millis())].into_iter();
        let line = line.chain(known).chain(["--".to_owned()]).map(OsString::from);
        Ok(line.chain([mount_point.into()]).collect())
    }

    /// Options without those that the translation need not know.
    fn translatable_options(&self) -> Vec<TypedOption> {
        let cache = self.value("cacheCapacityMB").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let has_disk_cache = cache.saturating_mul(1 << 20) >= MIN_DISK_CACHE_SIZE.0;
        let is_wanted = |option: &&TypedOption| match option.name.as_str() {
            name if OWN_OPTIONS.contains(&name) => false,
            "cacheDir" | "cacheCapacityMB" => has_disk_cache,
            // No limit of its own.
            "concurrentReaders" => option.value.as_deref() != Some("0"),
            _ => true,
        };
        let mut options: Vec<_> = self.options.iter().filter(is_wanted).cloned().collect();
        // `weed mount` takes a path without the first slash.
        for option in options.iter_mut().filter(|option| option.name == "filer.path") {
            option.value = option.value.take().map(|path| format!("/{}", path.trim_start_matches('/')));
        }
        options
    }

    /// The same without options that are refused for a mount, and mean nothing to a layer.
    fn layer_options(&self, mount: &Command) -> Vec<TypedOption> {
        let is_taken = |option: &TypedOption| {
            foreign_options::translate(std::slice::from_ref(option), mount, true).is_ok()
        };
        self.translatable_options().into_iter().filter(is_taken).collect()
    }

    fn value(&self, name: &str) -> Option<&str> {
        last(&self.options, name)?.value.as_deref().filter(|value| !value.is_empty())
    }

    /// Whether a switch is on, in the spellings of Go.
    fn is_on(&self, name: &str) -> bool {
        last(&self.options, name).is_some_and(|option| match option.value.as_deref() {
            None => true,
            Some(value) => matches!(value, "1" | "t" | "T" | "true" | "True" | "TRUE"),
        })
    }
}

/// The last option of this name, which is the one that counts.
fn last<'a>(options: &'a [TypedOption], name: &str) -> Option<&'a TypedOption> {
    options.iter().rfind(|option| option.name == name)
}

fn has_option(command: &Command, argument: &str) -> bool {
    let name = argument.trim_start_matches("--").split('=').next();
    command.get_arguments().any(|option| option.get_long().is_some() && option.get_long() == name)
}

/// Where the word `mount` stands, if that is the command. Options before it, which say how to log,
/// may have values of their own.
fn mount_word(arguments: &[OsString]) -> Option<usize> {
    let mut may_be_value = false;
    for (at, argument) in arguments.iter().enumerate() {
        let text = argument.to_str()?;
        if text == "mount" {
            return Some(at);
        }
        let is_option = text.starts_with('-');
        if !is_option && !may_be_value {
            return None;
        }
        may_be_value = is_option && !text.contains('=');
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the driver passes for a volume, with `more` among it.
    fn driver(more: &[&str]) -> VolumeArguments {
        let usual = [
            "-logtostderr=true",
            "mount",
            "-dirAutoCreate=true",
            "-umask=000",
            "-dir=/staging/volume",
            "-localSocket=/run/x.sock",
            "-cacheDir=/cache/x",
        ];
        let behind = [
            "-collection=pvc-1",
            "-collectionQuotaMB=5120",
            "-filer=a:8888,b:8888",
            "-filer.path=/buckets/pvc-1",
            "-cacheMetaTtlSec=60",
            "-concurrentReaders=128",
            "-concurrentWriters=128",
            "-map.uid=0:1000",
        ];
        let line: Vec<OsString> = usual.iter().chain(more).chain(&behind).map(OsString::from).collect();
        VolumeArguments::parse(&line).unwrap().unwrap()
    }

    fn texts(arguments: Vec<OsString>) -> Vec<String> {
        arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn a_volume_of_the_driver_is_understood() {
        let volume = driver(&["-readOnly"]);
        assert!(volume.is_read_only() && !driver(&[]).is_read_only());
        assert!(!driver(&["-readOnly=false"]).is_read_only() && driver(&["-readOnly=T"]).is_read_only());
        assert_eq!(volume.mount_point, Path::new("/staging/volume"));
        assert_eq!(volume.local_socket(), Some(Path::new("/run/x.sock")));
        assert_eq!(volume.created_mode(), Some(0o777));
        assert_eq!(driver(&["-umask=027"]).created_mode(), Some(0o750));
        assert_eq!(driver(&["-dirAutoCreate=false"]).created_mode(), None);
    }

    #[test]
    fn other_commands_are_not_taken() {
        let parsed = |line: &[&str]| {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            VolumeArguments::parse(&line).map(|volume| volume.map(|volume| volume.mount_point))
        };
        for line in [&[][..], &["version"], &["-v=4", "filer", "mount"], &["-v", "4", "version"], &["-h"]] {
            assert_eq!(parsed(line).unwrap(), None, "{line:?}");
        }
        assert_eq!(parsed(&["-v", "4", "mount", "-dir", "/x"]).unwrap(), Some("/x".into()));
        assert_eq!(parsed(&["mount", "--dir=/x", "-filer=a:1"]).unwrap(), Some("/x".into()));
        assert!(parsed(&["mount", "-dir="]).unwrap_err().to_string().contains("-dir"));
    }

    #[test]
    fn a_read_only_volume_becomes_a_mount() {
        let expected = [
            "mount",
            "--umask=000",
            "--filer=a:8888,b:8888",
            "--filer-path=/buckets/pvc-1",
            "--concurrent-readers=128",
            "--map-uid=0:1000",
            "--",
            "/staging/volume",
        ];
        let translated = driver(&["-readOnly"]).for_mount().unwrap();
        assert_eq!(texts(translated.arguments), expected);
        assert!(translated.ignored.contains(&"collection".to_owned()), "{:?}", translated.ignored);
        let error = driver(&["-peer.enable"]).for_mount().unwrap_err().to_string();
        assert!(error.contains("peer.enable"), "{error}");
        assert!(driver(&["-fromTheFuture=1"]).for_mount().unwrap_err().to_string().contains("unknown"));
    }

    #[test]
    fn only_a_cache_of_some_size_is_on_disk() {
        for (capacity, is_there) in [("0", false), ("63", false), ("64", true), ("2048", true)] {
            let option = format!("-cacheCapacityMB={capacity}");
            let arguments = texts(driver(&[&option]).for_mount().unwrap().arguments);
            assert_eq!(arguments.contains(&"--disk-cache=/cache/x".to_owned()), is_there, "{capacity}");
            let size = format!("--disk-cache-size={capacity}MiB");
            assert_eq!(arguments.contains(&size), is_there, "{capacity}");
        }
        assert!(
            !texts(driver(&["-concurrentReaders=0"]).for_mount().unwrap().arguments)
                .contains(&"--concurrent-readers=0".to_owned())
        );
    }

    #[test]
    fn a_writable_volume_keeps_its_options_but_for_the_directory() {
        let arguments = texts(driver(&["-peer.enable", "-disk", "ssd"]).for_weed(Path::new("/private")));
        assert_eq!(arguments[..2], ["-logtostderr=true", "mount"]);
        assert_eq!(arguments.last().unwrap(), "-dir=/private");
        assert_eq!(arguments.iter().filter(|argument| argument.starts_with("-dir=")).count(), 1);
        for kept in ["-localSocket=/run/x.sock", "-peer.enable", "-disk=ssd", "-collectionQuotaMB=5120"] {
            assert!(arguments.iter().any(|argument| argument == kept), "{kept} is not in {arguments:?}");
        }
    }

    #[test]
    fn the_layer_gets_what_is_about_reading() {
        let volume = driver(&["-peer.enable", "-fromTheFuture=1", "-cacheCapacityMB=64", "-dataCenter=d"]);
        let grace = std::time::Duration::from_secs(1);
        let expected = [
            "attach",
            "--grace=1000ms",
            "--disk-cache=/cache/x",
            "--disk-cache-size=64MiB",
            "--data-center=d",
            "--filer=a:8888,b:8888",
            "--filer-path=/buckets/pvc-1",
            "--concurrent-readers=128",
            "--",
            "/private",
        ];
        assert_eq!(texts(volume.for_attach(Path::new("/private"), grace).unwrap()), expected);
    }
}
