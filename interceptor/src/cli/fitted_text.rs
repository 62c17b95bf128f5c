//! Text that fits a number of terminal columns, of which some characters take two and others none.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Stands for what was left out.
const ELLIPSIS: char = '…';

/// The columns that `text` takes.
pub(super) fn columns(text: &str) -> usize {
    text.width()
}

/// The beginning of `text`, in at most `width` columns.
pub(super) fn cut_end(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    format!("{}{ELLIPSIS}", taken(text.chars(), room).trim_end())
}

/// A path or an address in at most `width` columns: some of its beginning, and more of its end,
/// which has the name of the file or the port.
pub(super) fn cut_middle(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let head = taken(text.chars(), room / 3);
    let tail: String = taken(text.chars().rev(), room - columns(&head)).chars().rev().collect();
    format!("{head}{ELLIPSIS}{tail}")
}

/// The first of `letters` that fit.
fn taken(letters: impl Iterator<Item = char>, width: usize) -> String {
    let mut left = width;
    let fits = |letter: &char| match left.checked_sub(letter.width().unwrap_or(0)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    letters.take_while(fits).collect()
}

/// The words of `text` in lines of at most `width` columns, longer words in pieces; the last of
/// `max_lines` ends with an ellipsis if words are left out.
pub(super) fn wrap(text: &str, width: usize, max_lines: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace().flat_map(|word| pieces(word, width)) {
        let is_last = lines.len() == max_lines;
        match lines.last_mut() {
            Some(line) if is_last || columns(line) + 1 + columns(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| cut_end(line, width)).collect()
}

/// A word in pieces that fit.
fn pieces(mut word: &str, width: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    while columns(word) > width {
        let (piece, rest) = word.split_at(taken(word.chars(), width).len());
        if piece.is_empty() {
            break;
        }
        pieces.push(piece);
        word = rest;
    }
    pieces.push(word);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_stays_visible() {
        let path = "/data/train/2026/images-0001.tar";
        assert_eq!(cut_middle(path, 32), path);
        assert_eq!(cut_middle(path, 24), "/data/t…/images-0001.tar");
        assert_eq!(cut_end(path, 12), "/data/train…");
        for width in 0..40 {
            assert!(columns(&cut_middle(path, width)) <= width && columns(&cut_end(path, width)) <= width);
        }
    }

    #[test]
    fn wide_characters_take_two_columns() {
        for width in 0..12 {
            for cut in [cut_middle("文件文件文件", width), cut_end("文件文件文件", width)] {
                assert!(columns(&cut) <= width, "{cut} in {width}");
            }
        }
    }

    #[test]
    fn words_are_kept_together() {
        let text = "volume server b:8080 keeps readers waiting";
        assert_eq!(wrap(text, 20, 9), ["volume server b:8080", "keeps readers", "waiting"]);
        assert_eq!(wrap(text, 20, 2), ["volume server b:8080", "keeps readers waiti…"]);
        assert_eq!(wrap(text, 80, 2), [text]);
        assert_eq!(wrap("a /long/path", 5, 9), ["a", "/long", "/path"]);
        assert_eq!(wrap("文件", 1, 2), ["…"]);
        assert!(wrap("", 4, 2).is_empty());
    }
}
