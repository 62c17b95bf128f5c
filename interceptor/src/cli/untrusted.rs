//! Untrusted text, such as the name of a file, on a terminal.

use daemon::output::is_harmful;

/// The text without control characters, line breaks included, and without characters that change
/// the direction of reading.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|letter| if is_harmful(letter) { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn nothing_is_left_that_a_terminal_acts_on() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\rd\u{202e}e"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\u{fffd}e");
        assert_eq!(plain("naïve 文件.txt"), "naïve 文件.txt");
    }
}
