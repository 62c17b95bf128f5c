//! What a package has of a program beside the program: manual pages and shell completions, made
//! from the definition of its command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

/// Writes the manual pages and the shell completions of this program.
#[derive(Debug, Clone, Args)]
pub struct DocumentsOptions {
    /// An existing directory, in which man, bash, zsh and fish are made
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl DocumentsOptions {
    /// Writes them. `bash_extras` is appended to the completions for bash.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, command: Command, bash_extras: &str) -> io::Result<()> {
        let pages = self.subdirectory("man")?;
        let name = command.get_name().to_owned();
        clap_mangen::generate_to(command.clone(), &pages)?;
        tidy_pages(&pages)?;
        for (directory, shell, file) in [
            ("bash", Shell::Bash, name.clone()),
            ("zsh", Shell::Zsh, format!("_{name}")),
            ("fish", Shell::Fish, format!("{name}.fish")),
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command.clone(), name.as_str(), &mut script);
            if shell == Shell::Bash {
                script.extend_from_slice(bash_extras.as_bytes());
            }
            fs::write(self.subdirectory(directory)?.join(file), script)?;
        }
        Ok(())
    }

    fn subdirectory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

/// Has the examples behind the options shown line by line, as they are in the help: the generator
/// fills them like a paragraph.
fn tidy_pages(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let page = fs::read_to_string(&path)?;
        let tidy = page
            .replace("\n.SH EXTRA\n", "\n.SH NOTES\n.nf\n")
            .replace("\n.SH VERSION", "\n.fi\n.SH VERSION");
        if tidy != page {
            fs::write(&path, tidy)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_script() {
        let directory = tempfile::tempdir().unwrap();
        let command = Command::new("tool")
            .version("1")
            .subcommand(Command::new("run").about("Run").after_help("Examples:\n  tool run\n"))
            .subcommand(Command::new("inner").hide(true));
        let options = DocumentsOptions { directory: directory.path().to_owned() };
        options.write(command, "# extras\n").unwrap();
        let is_there = |name: &str| directory.path().join(name).is_file();
        assert!(is_there("man/tool.1") && is_there("man/tool-run.1") && !is_there("man/tool-inner.1"));
        assert!(is_there("zsh/_tool") && is_there("fish/tool.fish"));
        let bash = fs::read_to_string(directory.path().join("bash/tool")).unwrap();
        assert!(bash.ends_with("# extras\n") && bash.contains("_tool()"));
    }
}
