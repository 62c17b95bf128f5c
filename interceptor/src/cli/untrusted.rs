//! Untrusted text, such as the name of a file, on a terminal.

/// The text without control characters, line breaks included, and without characters that change
/// the direction of reading.
pub(super) fn plain(text: &str) -> String {
    let is_safe = |letter: char| {
        !letter.is_control()
            && !matches!(letter, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|letter| if is_safe(letter) { letter } else { '\u{fffd}' }).collect()
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
