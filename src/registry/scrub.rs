//! Secrets that a server may send back: they are taken out of everything that it says before it is shown or logged.

use std::sync::Mutex;

use base64::Engine as _;

use super::token::lock;
use super::{Credentials, url};

/// Stands in place of a secret.
const HIDDEN: &str = "***";

/// The secrets that were sent by one session, in each form that a server could repeat.
#[derive(Default)]
pub(crate) struct Secrets(Mutex<Vec<String>>);

/// How many there are, not which.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", lock(&self.0).len())
    }
}

impl Secrets {
    /// Adds a password, a token, or the value of a header field.
    pub(crate) fn add(&self, secret: &str) {
        if secret.is_empty() {
            return;
        }
        let escaped = url::escape(secret);
        let standard = base64::engine::general_purpose::STANDARD.encode(secret);
        let unpadded = |text: &str| text.trim_end_matches('=').to_owned();
        let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
        // A value of several words, `Basic dTpw`: also without the first one.
        let value = secret.split_once(' ').map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty());
        let value_escaped = value.as_deref().map(url::escape);
        let forms = [
            Some(secret.to_owned()),
            Some(escaped.replace("%20", "+")),
            Some(escaped.to_ascii_lowercase()).filter(|lower| lower.contains('%')),
            Some(escaped),
            Some(unpadded(&standard)),
            Some(standard),
            Some(url_safe),
            value_escaped,
            value.as_deref().map(unpadded),
            value,
        ];
        let mut all = lock(&self.0);
        for form in forms.into_iter().flatten().filter(|form| !form.is_empty()) {
            if !all.contains(&form) {
                all.push(form);
            }
        }
        // The longest first: a shorter one may be a part of it.
        all.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// Adds all that is secret in `credentials`.
    pub(crate) fn add_credentials(&self, credentials: &Credentials) {
        self.add(credentials.password.expose());
        if let Some(token) = &credentials.identity_token {
            self.add(token.expose());
        }
        if !credentials.password.is_empty() {
            self.add(super::token::basic(credentials).expose());
        }
    }

    /// Returns `text` with every secret replaced.
    pub(crate) fn scrub(&self, text: &str) -> String {
        let all = lock(&self.0);
        all.iter().fold(text.to_owned(), |text, secret| {
            if text.contains(secret.as_str()) { text.replace(secret.as_str(), HIDDEN) } else { text }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_secret_is_replaced() {
        let secrets = Secrets::default();
        secrets.add_credentials(&Credentials::basic("user", "p@ss wörd"));
        secrets.add_credentials(&Credentials::identity("refresh/token"));
        secrets.add("Bearer abc.def");
        for form in [
            "p@ss wörd",
            "p%40ss%20w%C3%B6rd",
            "p%40ss%20w%c3%b6rd",
            "p%40ss+w%C3%B6rd",
            "Basic dXNlcjpwQHNzIHfDtnJk",
            "dXNlcjpwQHNzIHfDtnJk",
            "refresh/token",
            "refresh%2Ftoken",
            "Bearer abc.def",
            "abc.def",
        ] {
            let shown = secrets.scrub(&format!("you sent {form}, twice: {form}"));
            assert_eq!(shown, "you sent ***, twice: ***", "{form}");
        }
        assert_eq!(secrets.scrub("user"), "user");
        assert_eq!(format!("{secrets:?}").find("abc"), None);
        let none = Secrets::default();
        none.add("");
        assert_eq!(none.scrub("text"), "text");
    }
}
