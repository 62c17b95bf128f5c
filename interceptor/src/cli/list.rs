//! `interceptor list`: the mounts and attached paths of this host.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use daemon::output;
use daemon::size::ByteSize;
use serde_json::json;

use super::figures::period;
use super::http::StatusClient;
use super::local_mounts::{self, DaemonAnswer, LocalMount};
use super::mount_address::is_layer;
use super::untrusted::plain;

/// Lists the mounts and attached paths of this host.
#[derive(Debug, Clone, Args)]
pub(super) struct ListOptions {
    /// Print JSON, an object for each mount
    #[arg(long)]
    json: bool,

    /// The file with the token that the daemons were given with the same option
    #[arg(long, value_name = "FILE")]
    status_token_file: Option<PathBuf>,
}

/// Prints them on standard output.
pub(super) fn run(options: &ListOptions) -> anyhow::Result<()> {
    let client = StatusClient::with_token(options.status_token_file.clone());
    let mounts = local_mounts::find(&client, usize::MAX)?;
    if options.json {
        let objects: Vec<_> = mounts.iter().map(object).collect();
        return Ok(output::print(format_args!("{:#}\n", json!(objects)))?);
    }
    if mounts.is_empty() {
        output::note("nothing is mounted");
    }
    Ok(output::print(Table(mounts.iter().map(row).collect()))?)
}

fn kind(mount: &LocalMount) -> &'static str {
    if is_layer(&mount.mount) { "attach" } else { "mount" }
}

fn object(found: &LocalMount) -> serde_json::Value {
    let answer = found.report.as_ref().ok();
    let report = answer.map(|answer| &answer.report);
    json!({
        "mount_point": found.mount.path.to_string_lossy(),
        "kind": kind(found),
        "source": found.mount.source,
        "pid": report.map(|report| report.pid),
        "version": report.map(|report| &report.version),
        "uptime_seconds": report.map(|report| report.uptime_seconds),
        "cache_used": report.and_then(|report| report.cache.as_ref()).map(|cache| cache.used + cache.resident),
        "cache_capacity": report.and_then(|report| report.cache.as_ref()).map(|cache| cache.capacity),
        "dashboard": answer.map(|answer| &answer.dashboard),
        "error": found.report.as_ref().err(),
    })
}

/// What a mount has in each column.
type Row = [String; 6];

const HEADER: [&str; 6] = ["MOUNT POINT", "KIND", "SOURCE", "PID", "DASHBOARD", "DAEMON"];

fn row(found: &LocalMount) -> Row {
    let (pid, dashboard, daemon) = match &found.report {
        Ok(DaemonAnswer { dashboard, report }) => {
            let cache = report.cache.as_ref();
            let cache = cache.map(|cache| {
                format!(", cache {} of {}", ByteSize(cache.used + cache.resident), ByteSize(cache.capacity))
            });
            (
                report.pid.to_string(),
                dashboard.clone(),
                format!("up {}{}", period(report.uptime_seconds), cache.unwrap_or_default()),
            )
        }
        Err(error) => ("-".into(), "-".into(), error.clone()),
    };
    let path = found.mount.path.to_string_lossy();
    [plain(&path), kind(found).into(), plain(&found.mount.source), pid, plain(&dashboard), plain(&daemon)]
}

/// Rows with aligned columns.
struct Table(Vec<Row>);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let header = HEADER.map(str::to_owned);
        let rows = || std::iter::once(&header).chain(&self.0);
        let widths: [usize; 6] =
            std::array::from_fn(|column| rows().map(|row| row[column].chars().count()).max().unwrap_or(0));
        for [path, kind, source, pid, dashboard, daemon] in rows() {
            let [first, second, third, fourth, fifth, _] = widths;
            write!(f, "{path:first$}  {kind:second$}  {source:third$}  {pid:>fourth$}  ")?;
            writeln!(f, "{dashboard:fifth$}  {daemon}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row =
            |path: &str, pid: &str| [path, "mount", "f:1:/", pid, "http://h:1/", "up 1 s"].map(str::to_owned);
        let text = Table(vec![row("/mnt/a", "7"), row("/mnt/longer", "12345")]).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "/mnt/a       mount  f:1:/       7  http://h:1/  up 1 s");
        assert_eq!(lines[2], "/mnt/longer  mount  f:1:/   12345  http://h:1/  up 1 s");
        assert_eq!(Table(Vec::new()).to_string(), "");
    }
}
