//! A real browser without a window: Chromium, controlled over the pipe of its DevTools protocol.
//!
//! The browser shows one page. Its complaints (errors of scripts, refused loads, violations of the
//! page's security policy) are collected from the start, so that a test can ask for
//! [`Browser::problems`] in the end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::patience;
use crate::process::Process;

/// Longest wait for an answer of the browser.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for its end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The window that shows a page.
#[derive(Debug, Clone, Copy)]
pub struct Viewport {
    /// CSS pixels.
    pub width: u32,
    /// CSS pixels.
    pub height: u32,
    /// Whether the user prefers dark colours.
    pub is_dark: bool,
}

/// The browser and its page.
#[derive(Debug)]
pub struct Browser {
    orders: File,
    news: Receiver<Value>,
    session: String,
    next: u64,
    problems: Vec<String>,
    process: Process,
    _profile: TempDir,
}

impl Browser {
    /// Starts it with an empty page.
    ///
    /// # Errors
    /// When there is no such program, or it does not answer.
    pub fn start() -> anyhow::Result<Browser> {
        let program =
            crate::tools::browser().context("there is no Chromium; `cargo xtask setup` installs it")?;
        let profile = tempfile::Builder::new().prefix("interceptor-browser-").tempdir()?;
        // It takes orders on descriptor 3 and answers on 4.
        let (takes, orders) = pipe2(OFlag::O_CLOEXEC)?;
        let (answers, gives) = pipe2(OFlag::O_CLOEXEC)?;
        let (takes_high, gives_high) = (above(&takes)?, above(&gives)?);
        let mut command = Command::new(program);
        command.args([
            "--headless=new",
            // Chromium's sandbox needs namespaces that root cannot make everywhere; it loads only
            // our page.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).env("HOME", profile.path());
        let (takes_number, gives_number) = (takes_high.as_raw_fd(), gives_high.as_raw_fd());
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        // Both descriptors are open and above their targets. Those at 3 and 4 are ours or the
        // parent's: all of the pipes are still open here.
        unsafe {
            command.pre_exec(move || {
                for (from, to) in [(takes_number, 3), (gives_number, 4)] {
                    if libc::dup2(from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let process = Process::start(command, &profile.path().join("log"), STOP_TIMEOUT, Signal::SIGKILL)?;
        drop((takes, gives, takes_high, gives_high));
        let mut browser = Browser {
            orders: orders.into(),
            news: listen(answers),
            session: String::new(),
            next: 0,
            problems: Vec::new(),
            process,
            _profile: profile,
        };
        browser.attach().with_context(|| format!("log of the browser:\n{}", browser.process.log_tail()))?;
        Ok(browser)
    }

    fn attach(&mut self) -> anyhow::Result<()> {
        let target = self.call("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call("Target.attachToTarget", &attach)?;
        self.session = session["sessionId"].as_str().context("no session")?.to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(())
    }

    /// Sets the window from now on.
    ///
    /// # Errors
    /// When the browser does not answer.
    pub fn look(&mut self, viewport: Viewport) -> anyhow::Result<()> {
        let Viewport { width, height, is_dark } = viewport;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", &metrics)?;
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &media)?;
        Ok(())
    }

    /// Has it load a page; does not wait for it.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn open(&mut self, url: &str) -> anyhow::Result<()> {
        let opened = self.call("Page.navigate", &json!({"url": url}))?;
        ensure!(opened.get("errorText").is_none(), "{url}: {}", opened["errorText"]);
        Ok(())
    }

    /// The value of an expression in the page.
    ///
    /// # Errors
    /// When it throws.
    pub fn value(&mut self, expression: &str) -> anyhow::Result<Value> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &asked)?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            bail!("{expression}: {thrown}");
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// When it is not within the [`patience`] that `limit` asks for.
    pub fn wait_until(&mut self, expression: &str, limit: Duration) -> anyhow::Result<()> {
        let limit = patience(limit);
        let deadline = Instant::now() + limit;
        while self.value(expression)? != Value::Bool(true) {
            ensure!(Instant::now() < deadline, "not within {limit:?}: {expression}");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What axe-core finds wrong with the page for people who hear it, use a keyboard or see little
    /// contrast; `None` if `cargo xtask test` has not brought axe-core ([`kept_axe`]).
    ///
    /// # Errors
    /// When the browser does not answer.
    pub fn accessibility_faults(&mut self) -> anyhow::Result<Option<Vec<String>>> {
        let Ok(script) = std::fs::read_to_string(kept_axe()) else { return Ok(None) };
        self.value(&format!("{script};0"))?;
        let faults = "axe.run().then((result) => result.violations.flatMap((fault) => \
            fault.nodes.map((node) => `${fault.id}: ${node.html}: ${node.failureSummary}`)))";
        Ok(Some(serde_json::from_value(self.value(faults)?)?))
    }

    /// Writes a picture of the whole page, PNG.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn screenshot(&mut self, path: &Path) -> anyhow::Result<()> {
        let asked = json!({"format": "png", "captureBeyondViewport": true});
        let shot = self.call("Page.captureScreenshot", &asked)?;
        let picture = STANDARD.decode(shot["data"].as_str().context("no picture")?)?;
        std::fs::write(path, picture).with_context(|| path.display().to_string())
    }

    /// Whatever the browser has complained of so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn problems(&mut self) -> anyhow::Result<&[String]> {
        // What was said before the answer is in.
        self.value("0")?;
        Ok(&self.problems)
    }

    fn call(&mut self, method: &str, parameters: &Value) -> anyhow::Result<Value> {
        self.next += 1;
        let mut order = json!({"id": self.next, "method": method, "params": parameters});
        if !self.session.is_empty() {
            order["sessionId"] = self.session.as_str().into();
        }
        let mut line = serde_json::to_vec(&order)?;
        line.push(0);
        self.orders.write_all(&line).with_context(|| format!("{method}: the browser is gone"))?;
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let news = self.news.recv_timeout(left).with_context(|| format!("{method}: no answer"))?;
            if news["id"] == self.next {
                ensure!(news.get("error").is_none(), "{method}: {}", news["error"]);
                return Ok(news["result"].clone());
            }
            self.problems.extend(problem(&news));
        }
    }
}

/// Where `cargo xtask test` keeps axe-core, a script that checks the accessibility of a page.
#[must_use]
pub fn kept_axe() -> PathBuf {
    crate::tools::target_directory().join("tools/axe.min.js")
}

/// The complaint that an event is, if it is one.
fn problem(event: &Value) -> Option<String> {
    let told = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(told["exceptionDetails"].to_string()),
        "Log.entryAdded" if told["entry"]["level"] == "error" || told["entry"]["level"] == "warning" => {
            Some(told["entry"].to_string())
        }
        "Runtime.consoleAPICalled" if told["type"] == "error" || told["type"] == "warning" => {
            Some(told["args"].to_string())
        }
        _ => None,
    }
}

/// A second descriptor for `end`, above those that a program is handed.
fn above(end: &OwnedFd) -> anyhow::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let number = fcntl(end, FcntlArg::F_DUPFD_CLOEXEC(10))?;
    // SAFETY: the call above opened it, and this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What the browser says, message by message, as long as it lives.
fn listen(answers: OwnedFd) -> Receiver<Value> {
    let (sender, news) = mpsc::channel();
    thread::spawn(move || {
        let messages = BufReader::new(File::from(answers)).split(0).map_while(Result::ok);
        for message in messages.filter_map(|message| serde_json::from_slice(&message).ok()) {
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    news
}
