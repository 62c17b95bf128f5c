//! A real terminal without a window: tmux, with a shell in it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::eventually;

const PROMPT: &str = "$";
/// How long a shell may take to begin.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A terminal. It ends with this value, and whatever runs in it.
#[derive(Debug)]
pub struct Terminal {
    home: TempDir,
}

impl Terminal {
    /// A terminal of so many columns and lines, whose shell waits for a command.
    ///
    /// # Errors
    /// When there is no tmux, or its shell does not begin.
    pub fn open(columns: u16, lines: u16) -> anyhow::Result<Terminal> {
        let home = tempfile::Builder::new().prefix("interceptor-terminal-").tempdir()?;
        let terminal = Terminal { home };
        let size = [columns.to_string(), lines.to_string()];
        terminal.tmux(&[
            "new-session",
            "-d",
            "-x",
            &size[0],
            "-y",
            &size[1],
            &format!("env PS1='{PROMPT} ' LANG=C.UTF-8 sh"),
        ])?;
        terminal.wait_until("a prompt", START_TIMEOUT, is_at_prompt)?;
        Ok(terminal)
    }

    /// Types a text, without Enter.
    ///
    /// # Errors
    /// When the terminal is gone; so everywhere below.
    pub fn type_text(&self, text: &str) -> anyhow::Result<()> {
        self.tmux(&["send-keys", "-l", text]).map(drop)
    }

    /// Presses a key, by tmux's name for it: `Enter`, `Tab`, `C-c`, …
    ///
    /// # Errors
    /// See [`Terminal::type_text`].
    pub fn press(&self, key: &str) -> anyhow::Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// Makes the window larger or smaller.
    ///
    /// # Errors
    /// See [`Terminal::type_text`].
    pub fn resize(&self, columns: u16, lines: u16) -> anyhow::Result<()> {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &lines.to_string()]).map(drop)
    }

    /// What is on the screen.
    ///
    /// # Errors
    /// See [`Terminal::type_text`].
    pub fn screen(&self) -> anyhow::Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// What tmux says of the window: the value of one of its variables, such as `alternate_on`.
    ///
    /// # Errors
    /// See [`Terminal::type_text`].
    pub fn variable(&self, name: &str) -> anyhow::Result<String> {
        Ok(self.tmux(&["display-message", "-p", &format!("#{{{name}}}")])?.trim_end().to_owned())
    }

    /// Waits until the screen is as wanted, and returns it.
    ///
    /// # Errors
    /// When it is not within `limit`; the text has the screen.
    pub fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        let mut screen = String::new();
        let waited = eventually(what, limit, || {
            screen = self.screen().ok()?;
            wanted(&screen).then_some(())
        });
        waited.with_context(|| format!("the screen is:\n{screen}"))?;
        Ok(screen)
    }

    fn socket(&self) -> std::path::PathBuf {
        self.home.path().join("socket")
    }

    fn tmux(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.socket()).args(["-f", "/dev/null"]).args(arguments);
        command.env("LANG", "C.UTF-8").env("TERM", "xterm-256color").env_remove("TMUX");
        let output = command.output().context("there is no tmux; `cargo xtask setup` installs it")?;
        ensure!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

/// Whether the shell waits for a command. What is typed before that is echoed by the terminal
/// amid what the command of before still prints.
#[must_use]
pub fn is_at_prompt(screen: &str) -> bool {
    screen.trim_end().lines().last().is_some_and(|line| line.trim_end() == PROMPT)
}

/// A word of a shell's that means the path as it is.
#[must_use]
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
