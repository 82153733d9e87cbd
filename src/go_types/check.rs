//! The walk over a document that answers whether `json.Unmarshal` takes it (Go `encoding/json/decode.go`).
//!
//! * `null` fits every type and changes nothing.
//! * A key that is written exactly as a field is that field, else the first field that it folds to; others are ignored.
//! * Each occurrence of a repeated key is unmarshalled, so each must have the right type.
//! * An integer is written without fraction and exponent, and is in range.
//! * Numbers in a field of type `interface{}` are in the range of a `float64`.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::is_time_value;
use super::tables::{Layout, Type};
use crate::json::{Error, Kind, Raw, is_key, shown};

/// Go's `base64.StdEncoding`: padded, and bits after the last byte are not looked at.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Checks that Go can unmarshal `value` into the struct `layout`.
pub(super) fn check(value: Raw<'_>, layout: &Layout) -> Result<(), Error> {
    Walk { path: String::new() }.structure(value, layout)
}

struct Walk {
    path: String,
}

impl Walk {
    fn value(&mut self, value: Raw<'_>, of: &Type) -> Result<(), Error> {
        if value.kind() == Kind::Null {
            return Ok(());
        }
        match of {
            Type::String => self.must(value.kind() == Kind::String, value, "a string"),
            Type::Bool => self.must(value.kind() == Kind::Bool, value, "true or false"),
            Type::Int => self.must(value.text().parse::<i64>().is_ok(), value, "an integer of 64 bits"),
            Type::Time => self.must(is_time_value(value), value, "a time of RFC 3339, like \"2024-01-02T03:04:05Z\""),
            Type::Strings => self.list(value, "a list of strings", &Type::String),
            Type::StrSlice if value.kind() == Kind::String => Ok(()),
            Type::StrSlice => self.list(value, "a string or a list of strings", &Type::String),
            Type::Bytes if value.kind() == Kind::List => self.list(value, "", &Type::Byte),
            Type::Bytes => self.must(is_base64(value), value, "a string in base64"),
            Type::Byte => self.must(value.text().parse::<u8>().is_ok(), value, "a byte"),
            Type::StringMap => self.map(value, "an object with strings", &Type::String),
            Type::Set => self.map(value, "an object with empty objects", &Type::Empty),
            Type::Empty => self.must(value.kind() == Kind::Object, value, "an object"),
            Type::Any => value.overflow().map_or(Ok(()), |number| Err(Error::overflow(&self.path, number))),
            Type::Struct(layout) => self.structure(value, layout),
            Type::List(layout) => self.list(value, "a list of objects", &Type::Struct(layout)),
        }
    }

    fn must(&self, fits: bool, value: Raw<'_>, expected: &'static str) -> Result<(), Error> {
        if fits { Ok(()) } else { Err(Error::wrong(&self.path, value, expected)) }
    }

    fn list(&mut self, value: Raw<'_>, expected: &'static str, of: &Type) -> Result<(), Error> {
        let elements = value.elements().ok_or_else(|| Error::wrong(&self.path, value, expected))?;
        for (at, element) in elements.into_iter().enumerate() {
            self.within(&format!("[{at}]"), element, of)?;
        }
        Ok(())
    }

    fn map(&mut self, value: Raw<'_>, expected: &'static str, of: &Type) -> Result<(), Error> {
        let members = value.members().ok_or_else(|| Error::wrong(&self.path, value, expected))?;
        for (key, member) in members {
            self.within(&format!("[\"{}\"]", shown(&key)), member, of)?;
        }
        Ok(())
    }

    fn structure(&mut self, value: Raw<'_>, layout: &Layout) -> Result<(), Error> {
        if value.kind() == Kind::Null {
            return Ok(());
        }
        let members = value.members().ok_or_else(|| Error::wrong(&self.path, value, "an object"))?;
        for (key, member) in members {
            let exact = layout.fields().find(|(name, _)| *name == key);
            let Some((_, of)) = exact.or_else(|| layout.fields().find(|(name, _)| is_key(&key, name))) else {
                continue;
            };
            let dot = if self.path.is_empty() { "" } else { "." };
            self.within(&format!("{dot}{key}"), member, of)?;
        }
        Ok(())
    }

    fn within(&mut self, step: &str, value: Raw<'_>, of: &Type) -> Result<(), Error> {
        let length = self.path.len();
        self.path.push_str(step);
        self.value(value, of)?;
        self.path.truncate(length);
        Ok(())
    }
}

/// Returns whether Go decodes the value into a `[]byte`. Its decoder skips line ends.
fn is_base64(value: Raw<'_>) -> bool {
    let text = value.string();
    text.is_some_and(|text| BASE64.decode(text.replace(['\r', '\n'], "")).is_ok())
}
