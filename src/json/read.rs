//! JSON as Go's `encoding/json` reads it into a struct: skopeo, podman and CRI-O read the same document the same way.
//!
//! ```text
//!  bytes ─▶ Document (syntax and depth checked) ─┬─▶ Raw   one value as written: types are checked on it
//!                                                └─▶ View  one field as Go fills it, of all its occurrences
//! ```
//!
//! Keys match in any letter case, `null` leaves a field as it is, unknown keys are ignored, bytes that are not UTF-8
//! become U+FFFD, and each occurrence of a repeated key is read into the same field. There is one difference on purpose:
//! [`View::get`] refuses a field that is written in two spellings, because other readers disagree on which one counts.
//!
//! A value is kept as its text and parsed when it is asked for, so numbers keep their digits, strings their escapes and
//! repeated keys all their values. The memory needed is at most about ten times the size of the document.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Maximum depth of nested lists and objects (Go `encoding/json/scanner.go`, `maxNestingDepth`).
pub const DEPTH_MAX: usize = 10_000;

/// Maximum length of a key or value in an error message, in characters.
const SHOWN_MAX: usize = 60;

/// Error from reading a document.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// A field has a value of the wrong type.
    #[error("`{field}` is {found}, not {expected}")]
    Type {
        /// Path from the top: `layers[2].size`.
        field: String,
        /// Type that the field must have.
        expected: &'static str,
        /// Type or value that the field has.
        found: String,
    },
    /// A field occurs in two spellings.
    #[error("`{0}` occurs twice, in different case")]
    Case(String),
}

impl Error {
    /// Returns the error for a `value` at `path` that is not `expected`.
    pub(crate) fn wrong(path: &str, value: Raw<'_>, expected: &'static str) -> Self {
        let found = match value.kind() {
            Kind::Null => "null".to_owned(),
            Kind::Bool => value.text().to_owned(),
            Kind::Number => format!("the number {}", shown(value.text())),
            Kind::String => format!("the string {}", shown(value.text())),
            Kind::List => "a list".to_owned(),
            Kind::Object => "an object".to_owned(),
        };
        Self::Type { field: Self::field(path), expected, found }
    }

    /// Returns the error for a value at `path` that has `number` in it.
    pub(crate) fn overflow(path: &str, number: &str) -> Self {
        let found = format!("a value with the number {}", shown(number));
        Self::Type { field: Self::field(path), expected: "one whose numbers fit into 64-bit floats", found }
    }

    fn field(path: &str) -> String {
        if path.is_empty() { "the document".to_owned() } else { path.to_owned() }
    }
}

/// Returns `text` for an error message: printable, and at most [`SHOWN_MAX`] characters.
pub(crate) fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let begin: String = chars.by_ref().take(SHOWN_MAX).collect();
    let rest = if chars.next().is_some() { "…" } else { "" };
    // The quotes and backslashes of a JSON text stay as they are.
    begin
        .chars()
        .map(|char| if matches!(char, '"' | '\\' | '\'') { char.to_string() } else { escape(char) })
        .collect::<String>()
        + rest
}

fn escape(char: char) -> String {
    char.escape_debug().to_string()
}

/// A whole document. [`Document::top`] and [`Document::raw`] look into it.
#[derive(Debug)]
pub struct Document(Box<RawValue>);

impl Document {
    /// Parses `bytes`, which must be one value and nothing else.
    ///
    /// # Errors
    /// [`Error::Syntax`] if they are not, or if they are nested deeper than [`DEPTH_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_str(&String::from_utf8_lossy(bytes)).map_err(syntax).and_then(Self::new)
    }

    /// Parses the first value of `bytes` and ignores what follows, as Go's `Decoder.Decode` does.
    ///
    /// # Errors
    /// [`Error::Syntax`] if they do not begin with a value, or if it is nested deeper than [`DEPTH_MAX`].
    pub fn parse_first(bytes: &[u8]) -> Result<Self, Error> {
        match serde_json::Deserializer::from_str(&String::from_utf8_lossy(bytes)).into_iter().next() {
            Some(value) => value.map_err(syntax).and_then(Self::new),
            None => Err(Error::Syntax("no value".to_owned())),
        }
    }

    fn new(value: Box<RawValue>) -> Result<Self, Error> {
        if depth(value.get()) > DEPTH_MAX {
            return Err(Error::Syntax(format!("nested deeper than {DEPTH_MAX} lists and objects")));
        }
        Ok(Self(value))
    }

    /// Returns the top-level value as a field.
    #[must_use]
    pub fn top(&self) -> View<'_> {
        View { values: vec![self.raw()], path: String::new() }
    }

    /// Returns the top-level value as written.
    #[must_use]
    pub fn raw(&self) -> Raw<'_> {
        Raw(self.0.get())
    }
}

fn syntax(error: serde_json::Error) -> Error {
    Error::Syntax(error.to_string())
}

/// Returns how deep the lists and objects of a valid JSON text are nested.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest): (usize, usize) = (0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Type of a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// A list.
    List,
    /// An object.
    Object,
}

/// One value as it is written, with nothing around it. Its syntax has been checked.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a>(&'a str);

impl<'a> Raw<'a> {
    /// Returns the type of the value.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self.0.as_bytes().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::List,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') | None => Kind::Null,
            Some(_) => Kind::Number,
        }
    }

    /// Returns the text of the value: a string with its quotes and escapes, a number with its digits.
    #[must_use]
    pub fn text(self) -> &'a str {
        self.0
    }

    /// Returns the first number anywhere in the value that is too large for a `float64`: Go cannot read a value with one into an
    /// `interface{}` (`encoding/json/decode.go`, `convertNumber`).
    #[must_use]
    pub fn overflow(self) -> Option<&'a str> {
        let bytes = self.0.as_bytes();
        let is_digit = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    at += 1;
                    while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                        at += if bytes[at] == b'\\' { 2 } else { 1 };
                    }
                    at += 1;
                }
                b'-' | b'0'..=b'9' => {
                    let length = bytes[at..].iter().take_while(|byte| is_digit(byte)).count();
                    let number = &self.0[at..at + length];
                    if number.parse::<f64>().is_ok_and(f64::is_infinite) {
                        return Some(number);
                    }
                    at += length;
                }
                _ => at += 1,
            }
        }
        None
    }

    /// Returns the string, unless this is not one. Half of a surrogate pair becomes U+FFFD.
    #[must_use]
    pub fn string(self) -> Option<Cow<'a, str>> {
        if self.kind() != Kind::String {
            return None;
        }
        unquoted(&mut serde_json::Deserializer::from_str(self.0)).ok()
    }

    /// Returns the elements, unless this is not a list.
    #[must_use]
    pub fn elements(self) -> Option<Vec<Raw<'a>>> {
        if self.kind() != Kind::List {
            return None;
        }
        let elements: Vec<&'a RawValue> = serde_json::from_str(self.0).ok()?;
        Some(elements.into_iter().map(|value| Raw(value.get())).collect())
    }

    /// Returns the members in the order in which they are written, repeated keys included, unless this is not an object.
    #[must_use]
    pub fn members(self) -> Option<Vec<(Cow<'a, str>, Raw<'a>)>> {
        if self.kind() != Kind::Object {
            return None;
        }
        serde_json::Deserializer::from_str(self.0).deserialize_map(Members).ok()
    }
}

/// Reads a string. Bytes are asked for since serde_json takes half of a surrogate pair only there.
fn unquoted<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, str>, D::Error> {
    deserializer.deserialize_bytes(Unquoted)
}

struct Unquoted;

impl<'de> Visitor<'de> for Unquoted {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(String::from_utf8_lossy(bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Cow::Owned(String::from_utf8_lossy(bytes).into_owned()))
    }
}

impl<'de> DeserializeSeed<'de> for Unquoted {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        unquoted(deserializer)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, Raw<'de>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = map.next_key_seed(Unquoted)? {
            members.push((key, Raw(map.next_value::<&'de RawValue>()?.get())));
        }
        Ok(members)
    }
}

/// Returns whether Go takes the key `written` for the field `name`, a name in ASCII (`encoding/json/fold.go`, `foldName`:
/// Unicode simple folding, in which `K`, the Kelvin sign, is a `k` and `ſ`, the long s, an `s`).
#[must_use]
pub fn is_key(written: &str, name: &str) -> bool {
    let fold = |char: char| match char {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        char => char.to_ascii_lowercase(),
    };
    written.len() >= name.len() && written.chars().map(fold).eq(name.chars().map(fold))
}

/// One field, or list element, of a document: all values that Go reads into it, and its path for error messages.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// In the order of the document, at least one.
    values: Vec<Raw<'a>>,
    path: String,
}

impl<'a> View<'a> {
    /// Returns what `read` makes of each value that is not `null`. One value of the wrong type is an error, also if
    /// another one follows.
    fn read<T>(&self, expected: &'static str, read: impl Fn(Raw<'a>) -> Option<T>) -> Result<Vec<T>, Error> {
        let values = self.values.iter().filter(|value| value.kind() != Kind::Null);
        values.map(|value| read(*value).ok_or_else(|| Error::wrong(&self.path, *value, expected))).collect()
    }

    /// Returns the values after the last `null`, which empties a list or a map.
    fn since_null(&self) -> Self {
        let from = self.values.iter().rposition(|value| value.kind() == Kind::Null).map_or(0, |at| at + 1);
        View { values: self.values[from..].to_vec(), path: self.path.clone() }
    }

    /// Returns the field called `key`, in any case, unless it is absent or `null`.
    ///
    /// # Errors
    /// [`Error::Type`] if this is not an object, [`Error::Case`] if it has the key in two spellings.
    pub fn get(&self, key: &str) -> Result<Option<View<'a>>, Error> {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        let mut spelling: Option<Cow<'a, str>> = None;
        let mut values = Vec::new();
        for (name, value) in self.read("an object", Raw::members)?.into_iter().flatten() {
            if !is_key(&name, key) {
                continue;
            }
            if spelling.as_ref().is_some_and(|spelling| *spelling != name) {
                return Err(Error::Case(path));
            }
            spelling = Some(name);
            values.push(value);
        }
        let is_set = values.iter().any(|value| value.kind() != Kind::Null);
        Ok(is_set.then_some(View { values, path }))
    }

    /// Returns the string.
    ///
    /// # Errors
    /// [`Error::Type`] if this is not one.
    pub fn text(&self) -> Result<Cow<'a, str>, Error> {
        let last = self.read("a string", Raw::string)?.pop();
        last.ok_or_else(|| Error::wrong(&self.path, Raw("null"), "a string"))
    }

    /// Returns the elements of the list.
    ///
    /// # Errors
    /// [`Error::Type`] if this is not one.
    pub fn items(&self) -> Result<impl Iterator<Item = View<'a>> + use<'a>, Error> {
        let path = self.path.clone();
        self.read("a list", Raw::elements)?;
        let mut lists = self.since_null().read("a list", Raw::elements)?;
        let last = lists.pop().unwrap_or_default();
        // Go reads a second list over the elements of the first (`encoding/json/decode.go`, `array`).
        Ok(last.into_iter().enumerate().map(move |(at, value)| {
            let mut values: Vec<_> = lists.iter().filter_map(|list| list.get(at).copied()).collect();
            values.push(value);
            View { values, path: format!("{path}[{at}]") }
        }))
    }

    /// Returns the string called `key`; empty if absent or `null`.
    ///
    /// # Errors
    /// As [`Self::get`] and [`Self::text`].
    pub fn get_text(&self, key: &str) -> Result<Cow<'a, str>, Error> {
        self.get(key)?.map_or(Ok(Cow::Borrowed("")), |value| value.text())
    }

    /// Returns the elements of the list called `key`; none if absent or `null`.
    ///
    /// # Errors
    /// As [`Self::get`] and [`Self::items`].
    pub fn get_items(&self, key: &str) -> Result<Vec<View<'a>>, Error> {
        self.get(key)?.map_or_else(|| Ok(Vec::new()), |value| Ok(value.items()?.collect()))
    }

    /// Returns the integer called `key`, zero if absent or `null`.
    ///
    /// # Errors
    /// As [`Self::get`], and [`Error::Type`] if it is something else: negative, a fraction, more than 63 bits.
    pub fn get_size(&self, key: &str) -> Result<u64, Error> {
        let Some(value) = self.get(key)? else { return Ok(0) };
        let sizes = value.read("a size in bytes", |raw| raw.text().parse::<i64>().ok()?.try_into().ok())?;
        Ok(sizes.last().copied().unwrap_or(0))
    }

    /// Returns the number as an integer; `None` if it is `null`.
    ///
    /// # Errors
    /// [`Error::Type`] if this is something else: a fraction, more than 64 bits.
    pub fn number(&self) -> Result<Option<i64>, Error> {
        Ok(self.read("an integer of 64 bits", |raw| raw.text().parse().ok())?.pop())
    }

    /// Returns the string called `key` of a map, whose keys are data and not the names of fields: case counts.
    ///
    /// # Errors
    /// [`Error::Type`] if this is not an object, or the value is not a string.
    pub fn entry(&self, key: &str) -> Result<Option<Cow<'a, str>>, Error> {
        let maps = self.since_null().read("an object", Raw::members)?;
        let values = maps.into_iter().flatten().filter(|(name, _)| name == key);
        let values: Vec<_> = values.map(|(_, value)| value).collect();
        Ok(View { values, path: format!("{}.{key}", self.path) }.read("a string", Raw::string)?.pop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Document {
        Document::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn documents_are_read_as_go_reads_them() {
        let document =
            Document::parse(b"{\"A\": \"x\", \"n\": null, \"s\": 1, \"s\": 2, \"l\": [{\"q\": \"\xff\"}]}").unwrap();
        let top = document.top();
        assert_eq!(top.get_text("a").unwrap(), "x");
        assert_eq!(top.get_text("n").unwrap(), "");
        assert_eq!(top.get_size("s").unwrap(), 2);
        assert_eq!(top.get_items("l").unwrap()[0].get_text("Q").unwrap(), "\u{fffd}");
        assert_eq!(top.get_items("absent").unwrap().len(), 0);
        let escaped = parse(r#"{"\u0061": "\u00e9\n\ud83d\ude00\ud800"}"#);
        assert!(escaped.top().get_text("a").unwrap().starts_with("é\n😀\u{fffd}"));
    }

    #[test]
    fn repeated_keys_are_read_into_one_field() {
        let document = parse(
            r#"{"t": "a", "t": null, "o": {"a": "1", "b": "2"}, "o": {"b": "3"}, "m": {"x": "1"}, "m": null,
                "m": {"y": "2"}, "l": [{"a": "1"}, {"a": "2"}], "l": [{"b": "3"}], "e": [1], "e": null}"#,
        );
        let top = document.top();
        assert_eq!(top.get_text("t").unwrap(), "a");
        let object = top.get("o").unwrap().unwrap();
        assert_eq!((object.get_text("a").unwrap(), object.get_text("b").unwrap()), ("1".into(), "3".into()));
        let map = top.get("m").unwrap().unwrap();
        assert_eq!((map.entry("x").unwrap(), map.entry("y").unwrap()), (None, Some("2".into())));
        let list = top.get_items("l").unwrap();
        assert_eq!(
            (list.len(), list[0].get_text("a").unwrap(), list[0].get_text("b").unwrap()),
            (1, "1".into(), "3".into())
        );
        assert_eq!(top.get_items("e").unwrap().len(), 0);
        for (bad, error) in [
            (r#"{"a": 1, "a": "x"}"#, "`a` is the number 1, not a string"),
            (r#"{"a": "x", "a": 1}"#, "`a` is the number 1, not a string"),
            (r#"{"a": "x", "A": "y"}"#, "`a` occurs twice, in different case"),
        ] {
            assert_eq!(parse(bad).top().get_text("a").unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn the_wrong_type_is_named_by_its_path() {
        let document = parse(r#"{"l": [{"size": -1}, {"size": 1.5}], "m": 1}"#);
        let items = document.top().get_items("l").unwrap();
        let error = items[0].get_size("size").unwrap_err().to_string();
        assert_eq!(error, "`l[0].size` is the number -1, not a size in bytes");
        assert!(items[1].get_size("size").is_err());
        assert!(document.top().get_text("m").is_err() && document.top().get_items("m").is_err());
        assert!(parse("[]").top().get("x").is_err());
        let long = parse(&format!(r#"{{"s": ["\u202e{}"]}}"#, "x".repeat(100)));
        let error = long.top().get_text("s").unwrap_err().to_string();
        assert_eq!(error, "`s` is a list, not a string");
        let error = Error::wrong("s", Raw(&format!("\"\u{202e}{}\"", "x".repeat(100))), "a list").to_string();
        assert_eq!(error, format!("`s` is the string \"\\u{{202e}}{}…, not a list", "x".repeat(58)));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for bad in [&b""[..], b"{", b"{} {}", b"\0", b"{\"a\":}", b"{\"a\":\"\n\"}", b"\xff", b"01", b"{\"a\":1,}"] {
            assert!(Document::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Document::parse_first(b"{} trailing").is_ok());
        assert!(Document::parse_first(b"").is_err());
    }

    #[test]
    fn nesting_is_bounded_as_in_go() {
        let nested = |depth: usize| format!("{{\"a\":{}\"[[\\\"[\"{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(Document::parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert!(Document::parse(nested(DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(Document::parse("[".repeat(4 << 20).as_bytes()).is_err());
    }

    #[test]
    fn numbers_that_overflow_are_found_outside_of_strings() {
        for (text, number) in [
            ("1e400", Some("1e400")),
            (r#"{"1e400":["-1e999\\\"1e400",{"a":[1,-1.5E+309]}]}"#, Some("-1.5E+309")),
            (r#"["1e400","\\",{"a":1.7e308,"b":1e-999,"c":-0}]"#, None),
            (r#""\"1e400""#, None),
            ("null", None),
        ] {
            assert_eq!(parse(text).raw().overflow(), number, "{text}");
        }
    }

    #[test]
    fn keys_are_folded_as_go_folds_them() {
        for (written, name) in
            [("CONFIG", "config"), ("\u{212a}ey", "key"), ("o\u{17f}", "OS"), ("dige\u{17f}t", "digest")]
        {
            assert!(is_key(written, name), "{written}");
        }
        for (written, name) in [("config ", "config"), ("ı", "i"), ("İ", "i"), ("confi", "config"), ("ß", "ss")] {
            assert!(!is_key(written, name), "{written}");
        }
    }
}
