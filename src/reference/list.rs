//! The list of images in a file: `--images FILE`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use super::{Item, ParseItemError};

/// The longest image list, in bytes: far more than a machine boots with, far less than memory.
pub const LIST_BYTES_MAX: usize = 1 << 20;
/// The longest line of an image list, in bytes: a path (`PATH_MAX`) and two names fit.
pub const LIST_LINE_MAX: usize = 8192;
/// The most items in an image list.
pub const LIST_ITEMS_MAX: usize = 10_000;

/// Why an image list cannot be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ListError {
    /// More than [`LIST_BYTES_MAX`].
    #[error("the image list has more than {LIST_BYTES_MAX} bytes")]
    Size,
    /// More than [`LIST_ITEMS_MAX`].
    #[error("line {line}: more than {LIST_ITEMS_MAX} images in the list")]
    Items {
        /// The line, from 1.
        line: usize,
    },
    /// More than [`LIST_LINE_MAX`].
    #[error("line {line}: more than {LIST_LINE_MAX} bytes")]
    Line {
        /// The line, from 1.
        line: usize,
    },
    /// A line that is no item.
    #[error("line {line}: {error}")]
    Item {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        error: ParseItemError,
    },
}

/// Parses an image list: one item a line, `#` at its beginning or after white space begins a comment, empty lines and
/// white space around an item do not count; lines may end with CR LF, and a byte order mark may come first.
///
/// # Errors
/// The first line that is wrong.
pub fn parse_list(list: &[u8]) -> Result<Vec<Item>, ListError> {
    let item = |(line, item): (usize, &[u8])| {
        Item::parse(OsStr::from_bytes(item)).map_err(|error| ListError::Item { line, error })
    };
    parse_list_lines(list)?.into_iter().map(item).collect()
}

/// Returns the items of an image list as written, with the number of their lines, from 1: for callers that report every bad one.
///
/// # Errors
/// When the list, a line, or the number of items is too large.
pub fn parse_list_lines(list: &[u8]) -> Result<Vec<(usize, &[u8])>, ListError> {
    if list.len() > LIST_BYTES_MAX {
        return Err(ListError::Size);
    }
    let list = list.strip_prefix(b"\xef\xbb\xbf").unwrap_or(list);
    let mut items = Vec::new();
    for (at, content) in list.split(|b| *b == b'\n').enumerate() {
        let line = at + 1;
        if content.len() > LIST_LINE_MAX {
            return Err(ListError::Line { line });
        }
        let comment = (0..content.len())
            .find(|at| content[*at] == b'#' && (*at == 0 || content[at - 1].is_ascii_whitespace()))
            .unwrap_or(content.len());
        let item = content[..comment].trim_ascii();
        if item.is_empty() {
            continue;
        }
        if items.len() == LIST_ITEMS_MAX {
            return Err(ListError::Items { line });
        }
        items.push((line, item));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_have_comments_and_any_line_ends() {
        let list = b"\xef\xbb\xbf# pause first\r\n  k8s.gcr.io/pause:3.6 \r\n\r\n\talpine:3 # base\noci:d#x:v1\n#end";
        let typed: Vec<String> = parse_list(list).unwrap().into_iter().map(|item| item.typed).collect();
        assert_eq!(typed, ["k8s.gcr.io/pause:3.6", "alpine:3", "oci:d#x:v1"]);
        assert_eq!(parse_list(b""), Ok(vec![]));
    }

    #[test]
    fn errors_in_lists_name_the_line() {
        let error = parse_list(b"alpine:3\n\nalpine:a:b\n").unwrap_err();
        assert!(error.to_string().starts_with("line 3: alpine:a:b"), "{error}");
        assert_eq!(parse_list(&vec![b'\n'; LIST_BYTES_MAX + 1]), Err(ListError::Size));
        assert_eq!(parse_list(&vec![b'a'; LIST_LINE_MAX + 1]), Err(ListError::Line { line: 1 }));
        assert_eq!(parse_list(&b"a\n".repeat(LIST_ITEMS_MAX + 1)), Err(ListError::Items { line: LIST_ITEMS_MAX + 1 }));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(list in prop::collection::vec(any::<u8>(), 0..200), lines in "([ -~]{0,20}\\r?\n){0,9}") {
            let _ = parse_list(&list);
            let _ = parse_list(lines.as_bytes());
        }
    }
}
