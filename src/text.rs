//! Text from images, registries, paths and command lines, made safe for a terminal, a log and a JSON document.
//!
//! An escape sequence in a label could repaint the screen, a right-to-left override could show `exe.txt` for `txt.exe`, and two
//! names that differ in a zero-width character would look the same. All text that leaves the program goes through
//! [`printable`]; JSON goes through [`is_hidden`], which has the same characters escaped as `\uXXXX`. Sizes are written by [`human`].

use std::ops::RangeInclusive;

/// Characters that are assigned and not control or format characters, but of which nothing is visible: the rest of
/// `Default_Ignorable_Code_Point` in Unicode's DerivedCoreProperties.txt, and the blank Braille pattern.
const INVISIBLE: [RangeInclusive<char>; 9] = [
    '\u{34f}'..='\u{34f}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{e0000}'..='\u{e0fff}',
];

/// Returns whether `char` acts on a terminal, changes the direction of text, or cannot be seen: control and format characters
/// (among them bidirectional controls, zero-width characters and the byte order mark), line and paragraph separators, spaces
/// other than U+0020, private use and unassigned characters.
#[must_use]
pub fn is_hidden(char: char) -> bool {
    match char {
        ' '..='~' => false,
        '\0'..='\u{9f}' => true,
        _ if INVISIBLE.iter().any(|range| range.contains(&char)) => true,
        _ => {
            // The standard library escapes the general categories Cc, Cf, Cs, Co, Cn, Zl, Zp and Zs but the space (library/core/src/unicode/printable.py),
            // and combining characters only at the beginning of a text, hence the letter in front.
            let mut text = *b"a\0\0\0\0";
            let length = char.encode_utf8(&mut text[1..]).len();
            std::str::from_utf8(&text[..=length]).is_ok_and(|text| text.escape_debug().count() > 2)
        }
    }
}

/// Returns `text` with hidden characters escaped, as in Rust and JSON5: `\n`, `\u{202e}`. The result is one line.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if is_hidden(char) {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

/// Returns a size for people, in three digits and units of 1000 bytes: `1.5 MB`, as podman, docker and crictl show sizes. Every size
/// that any command shows comes from here.
#[must_use]
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    let decimals = if unit == "B" || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped_and_letters_are_not() {
        let hidden = [
            0..=0x1f,
            0x7f..=0xa0,
            0xad..=0xad,
            0x61c..=0x61c,
            0x180e..=0x180e,
            0x200b..=0x200f,
            0x2028..=0x202f,
            0x2060..=0x206f,
            0x3000..=0x3000,
            0xe000..=0xf8ff,
            0xfeff..=0xfeff,
            0xfff9..=0xfffb,
            0xffff..=0xffff,
            0xe0001..=0xe007f,
            0xf0000..=0x10ffff,
        ];
        for code in hidden.into_iter().flatten() {
            let char = char::from_u32(code).unwrap();
            assert!(is_hidden(char), "U+{code:04X}");
            assert!(printable(&format!("a{char}b")).is_ascii(), "U+{code:04X}");
        }
        let seen = "aZ09 ~\\'\"`<>|é\u{301}ßяж日本語한국어हिन्दीไทยעבריתالعربية→─█😀\u{fffd}";
        assert_eq!(printable(seen), seen);
        assert_eq!(printable("a\n\u{1b}[2J\u{9b}\u{202e}"), "a\\n\\u{1b}[2J\\u{9b}\\u{202e}");
    }
}
