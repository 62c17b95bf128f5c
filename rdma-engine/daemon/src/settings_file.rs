//! Reads an operator's files, with a limit: the path may lead to a file without end.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// The most bytes of such a file.
const MAX_SIZE: u64 = 1 << 20;

/// The text of a file; a pipe is read to its end.
///
/// # Errors
/// When the file cannot be read, is no UTF-8 text, or has more than 1 MiB.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_SIZE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it has more than 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_refused() {
        assert_eq!(read(Path::new("/dev/zero")).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(Path::new("/dev/null")).unwrap(), "");
        assert!(read(Path::new("/")).is_err());
        assert!(read(Path::new(file!()).file_name().unwrap().as_ref()).is_err(), "there is none here");
    }
}
