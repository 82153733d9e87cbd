//! JSON as Go's `encoding/json` reads it into a struct: what skopeo understands, this understands the same way.
//!
//! Keys match whatever their case, `null` is the same as absent, of a key that occurs twice the last counts, unknown
//! keys are ignored, bytes that are not UTF-8 become U+FFFD. One difference on purpose: two keys that differ in nothing
//! but case are refused, since readers disagree about which of them counts.

use serde_json::{Map, Value};

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// A value of the wrong type.
    #[error("`{field}` is not {expected}")]
    Type {
        /// Where, as a path from the top: `layers[2].size`.
        field: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// Two spellings of one key.
    #[error("`{0}` occurs twice, in different case")]
    Case(String),
}

/// A whole document. [`Document::top`] looks into it.
#[derive(Debug)]
pub struct Document(Value);

/// One object, or list element, of a document, with its path for error messages.
#[derive(Debug, Clone)]
pub struct View<'a> {
    value: &'a Value,
    path: String,
}

impl Document {
    /// Parses `bytes`, which must be one value and nothing else.
    ///
    /// # Errors
    /// When they are not.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_str(&String::from_utf8_lossy(bytes)).map(Self).map_err(|e| Error::Syntax(e.to_string()))
    }

    /// Parses the first value of `bytes` and ignores what follows, as Go's `Decoder.Decode` does.
    ///
    /// # Errors
    /// When they do not begin with a value.
    pub fn parse_first(bytes: &[u8]) -> Result<Self, Error> {
        match serde_json::Deserializer::from_str(&String::from_utf8_lossy(bytes)).into_iter().next() {
            Some(Ok(value)) => Ok(Self(value)),
            Some(Err(error)) => Err(Error::Syntax(error.to_string())),
            None => Err(Error::Syntax("no value".to_owned())),
        }
    }

    /// The document's top-level value.
    #[must_use]
    pub fn top(&self) -> View<'_> {
        View { value: &self.0, path: String::new() }
    }
}

impl<'a> View<'a> {
    fn wrong<T>(&self, expected: &'static str) -> Result<T, Error> {
        let field = if self.path.is_empty() { "the document".to_owned() } else { self.path.clone() };
        Err(Error::Type { field, expected })
    }

    fn members(&self) -> Result<Option<&'a Map<String, Value>>, Error> {
        match self.value {
            Value::Object(members) => Ok(Some(members)),
            Value::Null => Ok(None),
            _ => self.wrong("an object"),
        }
    }

    /// The member called `key` in any case, unless it is absent or `null`.
    ///
    /// # Errors
    /// When this is no object, or has the key in two spellings.
    pub fn get(&self, key: &str) -> Result<Option<View<'a>>, Error> {
        let Some(members) = self.members()? else { return Ok(None) };
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        let mut matching = members.iter().filter(|(name, _)| name.eq_ignore_ascii_case(key));
        let first = matching.next();
        if matching.next().is_some() {
            return Err(Error::Case(path));
        }
        Ok(first.filter(|(_, value)| !value.is_null()).map(|(_, value)| View { value, path }))
    }

    /// This as a string.
    ///
    /// # Errors
    /// When it is not one.
    pub fn text(&self) -> Result<&'a str, Error> {
        self.value.as_str().map_or_else(|| self.wrong("a string"), Ok)
    }

    /// This as a list.
    ///
    /// # Errors
    /// When it is not one.
    pub fn items(&self) -> Result<impl Iterator<Item = View<'a>> + use<'a>, Error> {
        let Value::Array(items) = self.value else { return self.wrong("a list") };
        let path = self.path.clone();
        Ok(items.iter().enumerate().map(move |(at, value)| View { value, path: format!("{path}[{at}]") }))
    }

    /// The string called `key`; empty when absent or `null`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn get_text(&self, key: &str) -> Result<&'a str, Error> {
        self.get(key)?.map_or(Ok(""), |value| value.text())
    }

    /// The list called `key`; empty when absent or `null`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn get_items(&self, key: &str) -> Result<Vec<View<'a>>, Error> {
        self.get(key)?.map_or_else(|| Ok(Vec::new()), |value| Ok(value.items()?.collect()))
    }

    /// The integer called `key`, zero when absent or `null`.
    ///
    /// # Errors
    /// When it is something else: negative, a fraction, more than 63 bits.
    pub fn get_size(&self, key: &str) -> Result<u64, Error> {
        let Some(value) = self.get(key)? else { return Ok(0) };
        match value.value.as_i64().map(u64::try_from) {
            Some(Ok(size)) => Ok(size),
            _ => value.wrong("a size in bytes"),
        }
    }

    /// The string called `key` of a map whose keys are data, not field names: case counts.
    ///
    /// # Errors
    /// When this is not an object, or the value is not a string.
    pub fn entry(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(value) = self.members()?.and_then(|members| members.get(key)).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        View { value, path: format!("{}.{key}", self.path) }.text().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn the_wrong_type_is_named_by_its_path() {
        let document = Document::parse(br#"{"l": [{"size": -1}, {"size": 1.5}], "m": 1}"#).unwrap();
        let items = document.top().get_items("l").unwrap();
        assert_eq!(items[0].get_size("size").unwrap_err().to_string(), "`l[0].size` is not a size in bytes");
        assert!(items[1].get_size("size").is_err());
        assert!(document.top().get_text("m").is_err() && document.top().get_items("m").is_err());
        assert!(Document::parse(b"[]").unwrap().top().get("x").is_err());
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for bad in [&b""[..], b"{", b"{} {}", b"\0", b"{\"a\":}"] {
            assert!(Document::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Document::parse_first(b"{} trailing").is_ok());
        assert!(Document::parse_first(b"").is_err());
        assert!(Document::parse(br#"{"a":1,"A":2}"#).unwrap().top().get("a").is_err());
        assert!(Document::parse("[".repeat(100_000).as_bytes()).is_err(), "nesting is bounded");
    }
}
