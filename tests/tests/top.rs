//! `interceptor top` in a real terminal: live figures, keys, other sizes, and a clean terminal
//! afterwards.

use std::time::Duration;

use tests::{Cluster, Load, Mount, Pattern, Terminal, host, load, mount, terminal};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

/// Figures of the line that begins with `source`: its rate and its bytes.
fn figures(screen: &str, source: &str) -> Option<(String, String)> {
    let line = screen.lines().find_map(|line| line.strip_prefix(source))?;
    let mut words = line.split_whitespace();
    let mut next = || Some(format!("{} {}", words.next()?, words.next()?));
    Some((next()?, next()?))
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_terminal_shows_the_mount_live_and_is_left_clean() {
    if !host::can_mount() || !host::has_program("tmux", &["-V"]) {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/large.bin", &Pattern::new(1).bytes(0, 256 * MIB), "").unwrap();
    cluster.filer().put("/small.bin", &Pattern::new(2).bytes(0, 2 * MIB), "").unwrap();
    let mount = Mount::builder(&cluster).args(["--cache-size", "64MiB"]).start().unwrap();
    let address = mount.status_url().unwrap().trim_start_matches("http://").to_owned();
    let load = Load::start(&[
        (load::SOMEWHERE, &mount.path().join("large.bin")),
        (load::DIRECT, &mount.path().join("small.bin")),
    ])
    .unwrap();

    let terminal = Terminal::open(80, 24).unwrap();
    let program = terminal::quoted(&mount::interceptor_program().unwrap());
    terminal.type_text(&format!("echo before; {program} top --status-addr {address}")).unwrap();
    terminal.press("Enter").unwrap();
    let is_live = |screen: &str| {
        let moving = |(rate, _): (String, String)| rate.ends_with("/s") && !rate.starts_with("0 ");
        figures(screen, "http").is_some_and(moving)
    };
    let first = terminal.wait_until("a rate of HTTP", WAIT_TIMEOUT, is_live).unwrap();
    assert!(first.contains(&mount.path().display().to_string()[..20]), "{first}");
    assert!(first.contains("q quit"), "{first}");
    let verdict = first.lines().next().unwrap().trim_start();
    assert!(["OK ", "DEGRADED ", "BAD "].iter().any(|word| verdict.starts_with(word)), "{first}");
    for part in ["hit ratio", "p99 wait", "origin saved", "last 5 min", "┤ 1 Files ├"] {
        assert!(first.contains(part), "no {part:?} in:\n{first}");
    }
    // Bytes grow from look to look.
    let bytes = figures(&first, "http").unwrap().1;
    let moved = |screen: &str| figures(screen, "http").is_some_and(|(_, now)| now != bytes);
    terminal.wait_until("more bytes over HTTP", WAIT_TIMEOUT, moved).unwrap();

    // Help, which any key closes; views, a filter, a pause.
    terminal.press("?").unwrap();
    let explains = |screen: &str| screen.contains("any key closes it") && screen.contains("damaged bytes");
    terminal.wait_until("the help", WAIT_TIMEOUT, explains).unwrap();
    terminal.press("q").unwrap();
    terminal.wait_until("no help", WAIT_TIMEOUT, |screen| !screen.contains("any key closes it")).unwrap();
    terminal.press("3").unwrap();
    let server = cluster.volume_servers()[0].address().to_string();
    terminal.wait_until("the volume server", WAIT_TIMEOUT, |screen| screen.contains(&server)).unwrap();
    terminal.type_text("/no such server").unwrap();
    terminal.wait_until("an empty list", WAIT_TIMEOUT, |screen| !screen.contains(&server)).unwrap();
    terminal.press("Escape").unwrap();
    terminal.wait_until("the list again", WAIT_TIMEOUT, |screen| screen.contains(&server)).unwrap();
    terminal.press("p").unwrap();
    terminal.wait_until("the pause", WAIT_TIMEOUT, |screen| screen.contains("PAUSED")).unwrap();
    terminal.press("p").unwrap();
    terminal.wait_until("the end of the pause", WAIT_TIMEOUT, |screen| !screen.contains("PAUSED")).unwrap();

    // Other sizes: the last line is where the window ends.
    for (columns, lines) in [(120, 40), (40, 12), (80, 24)] {
        terminal.resize(columns, lines).unwrap();
        let fits = |screen: &str| {
            let shown: Vec<&str> = screen.lines().collect();
            let widest = shown.iter().map(|line| line.chars().count()).max().unwrap_or(0);
            shown.len() == usize::from(lines)
                && widest <= usize::from(columns)
                && shown.last().is_some_and(|line| line.contains("Tab next view"))
        };
        terminal.wait_until(&format!("{columns}x{lines}"), WAIT_TIMEOUT, fits).unwrap();
    }
    drop(load);

    terminal.press("q").unwrap();
    is_clean(&terminal);
    // The same after Ctrl-C.
    terminal.type_text(&format!("{program} top --status-addr {address}")).unwrap();
    terminal.press("Enter").unwrap();
    terminal.wait_until("the screen again", WAIT_TIMEOUT, |screen| screen.contains("q quit")).unwrap();
    terminal.press("C-c").unwrap();
    is_clean(&terminal);
}

/// The screen from before is back, keys are shown as they are typed, and the cursor is seen.
fn is_clean(terminal: &Terminal) {
    let back = |screen: &str| screen.contains("before") && terminal::is_at_prompt(screen);
    terminal.wait_until("the screen from before", WAIT_TIMEOUT, back).unwrap();
    assert_eq!(terminal.variable("alternate_on").unwrap(), "0");
    assert_eq!(terminal.variable("cursor_flag").unwrap(), "1");
    terminal.type_text("stty -a | grep -ow -e '-*icanon' -e '-*echo'; echo code $?").unwrap();
    terminal.press("Enter").unwrap();
    let answered = |screen: &str| screen.contains("code 0") && terminal::is_at_prompt(screen);
    let told = terminal.wait_until("an answer of stty", WAIT_TIMEOUT, answered).unwrap();
    assert!(!told.contains("-icanon\n") && !told.contains("-echo\n"), "{told}");
    terminal.type_text("clear; echo before").unwrap();
    terminal.press("Enter").unwrap();
    let cleared = |screen: &str| screen.starts_with("before") && terminal::is_at_prompt(screen);
    terminal.wait_until("an empty screen", WAIT_TIMEOUT, cleared).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn without_a_daemon_or_a_terminal_it_says_so() {
    if !host::can_mount() {
        return;
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = std::process::Command::new(mount::interceptor_program().unwrap());
    let output = command.args(["top", "--status-addr", &closed.to_string()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no terminal"), "{output:?}");
}
