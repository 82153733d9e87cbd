//! `WWW-Authenticate`: what a registry wants to see before it answers ([RFC 9110, section 11.6.1]).
//!
//! ```text
//! WWW-Authenticate = #challenge
//! challenge        = auth-scheme [ 1*SP ( token68 / #auth-param ) ]
//! auth-param       = token BWS "=" BWS ( token / quoted-string )
//! ```
//!
//! A comma may end a parameter or a challenge: a token with `=` behind it is a parameter, one without opens a challenge.
//! What is malformed ends the parsing of that header field; what came before it counts.
//!
//! [RFC 9110, section 11.6.1]: https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1

/// The longest header field that is looked at, in bytes. Real ones have less than 300.
pub const FIELD_MAX: usize = 8 << 10;

/// The most challenges that are kept of one answer.
pub const CHALLENGES_MAX: usize = 16;

/// The most parameters that are kept of one challenge.
pub const PARAMETERS_MAX: usize = 16;

/// One way to authenticate that the server offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Challenge {
    /// The scheme in lower case: `basic`, `bearer`.
    pub scheme: String,
    /// The parameters in their order, names in lower case. Of equal names the first counts.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of parameter `name` (lower case), if it is there and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }
}

/// The challenges in all `WWW-Authenticate` fields of an answer.
pub fn parse<'a>(fields: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for field in fields {
        if field.len() <= FIELD_MAX {
            parse_field(&mut Scanner { rest: field }, &mut challenges);
        }
    }
    challenges
}

fn parse_field(scanner: &mut Scanner<'_>, challenges: &mut Vec<Challenge>) {
    // Where parameters without a scheme go: nowhere.
    let mut open = false;
    loop {
        scanner.skip(&[' ', '\t', ',']);
        let Some(token) = scanner.token() else { return };
        let before = *scanner;
        scanner.skip(&[' ', '\t']);
        if open && scanner.take('=') {
            scanner.skip(&[' ', '\t']);
            let Some(value) = scanner.value() else { return };
            if let Some(challenge) = challenges.last_mut()
                && challenge.parameters.len() < PARAMETERS_MAX
            {
                challenge.parameters.push((token.to_ascii_lowercase(), value));
            }
            scanner.skip(&[' ', '\t']);
            if !(scanner.rest.is_empty() || scanner.rest.starts_with(',')) {
                return;
            }
            continue;
        }
        *scanner = before;
        // A scheme stands alone, or a space parts it from what follows.
        if !(scanner.rest.is_empty() || scanner.rest.starts_with([' ', '\t', ',']))
            || challenges.len() >= CHALLENGES_MAX
        {
            return;
        }
        challenges.push(Challenge { scheme: token.to_ascii_lowercase(), parameters: Vec::new() });
        open = true;
        scanner.skip(&[' ', '\t']);
        scanner.skip_token68();
    }
}

#[derive(Clone, Copy)]
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, characters: &[char]) {
        self.rest = self.rest.trim_start_matches(characters);
    }

    fn take(&mut self, character: char) -> bool {
        let rest = self.rest.strip_prefix(character);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn token(&mut self) -> Option<&'a str> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.rest.find(|c| !is_token(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    fn value(&mut self) -> Option<String> {
        if !self.take('"') {
            return self.token().map(str::to_owned);
        }
        let mut value = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }

    /// Skips `token68` (`Negotiate YII...==`), if what comes next is one: it ends the challenge.
    fn skip_token68(&mut self) {
        let is_token68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
        let body = self.rest.trim_start_matches(is_token68);
        let rest = body.trim_start_matches('=').trim_start_matches([' ', '\t']);
        let is_whole = body.len() < self.rest.len() && (rest.is_empty() || rest.starts_with(','));
        // `realm,` could be either; nobody sends it. `realm=,` is a token68 by the grammar.
        if is_whole {
            self.rest = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Challenge { scheme: scheme.to_owned(), parameters }
    }

    #[test]
    fn what_registries_send_is_understood() {
        let realm = ("realm", "https://auth.docker.io/token");
        let service = ("service", "registry.docker.io");
        for (field, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io""#,
                vec![challenge("bearer", &[realm, service])],
            ),
            (
                "BEARER  Realm = \"https://auth.docker.io/token\" ,\t service=registry.docker.io ,, ",
                vec![challenge("bearer", &[realm, service])],
            ),
            (
                r#"Basic realm="a, \"b\" \\ Bearer x=y", Bearer realm="https://auth.docker.io/token""#,
                vec![challenge("basic", &[("realm", r#"a, "b" \ Bearer x=y"#)]), challenge("bearer", &[realm])],
            ),
            ("Negotiate, Basic realm=x", vec![challenge("negotiate", &[]), challenge("basic", &[("realm", "x")])]),
            (
                "Negotiate YII+/==, Basic realm=x",
                vec![challenge("negotiate", &[]), challenge("basic", &[("realm", "x")])],
            ),
            ("Basic", vec![challenge("basic", &[])]),
            ("", vec![]),
            (",, ,", vec![]),
            ("realm=\"x\"", vec![]),
            ("Basic realm=\"unfinished", vec![challenge("basic", &[])]),
            ("Basic realm=\"unfinished\\", vec![challenge("basic", &[])]),
            ("Basic realm=\"x\"y=z", vec![challenge("basic", &[("realm", "x")])]),
            ("Bearer realm=\"ü\"", vec![challenge("bearer", &[("realm", "ü")])]),
        ] {
            assert_eq!(parse([field]), expected, "{field}");
        }
    }

    #[test]
    fn several_fields_add_up_and_the_first_of_equal_names_counts() {
        let challenges = parse(["Basic realm=a", "Bearer realm=b,realm=c,scope=\"\""]);
        assert_eq!(challenges.len(), 2);
        assert_eq!(challenges[1].get("realm"), Some("b"));
        assert_eq!(challenges[1].get("scope"), None, "an empty value says nothing");
    }

    #[test]
    fn floods_are_bounded() {
        assert_eq!(parse(["Basic, ".repeat(1000).as_str()]).len(), CHALLENGES_MAX);
        let parameters = format!("Basic {}", "a=b, ".repeat(1000));
        assert_eq!(parse([parameters.as_str()])[0].parameters.len(), PARAMETERS_MAX);
        assert_eq!(parse([format!("Basic realm={}", "x".repeat(FIELD_MAX)).as_str()]), []);
        assert_eq!(parse(vec!["Basic"; 1000]).len(), CHALLENGES_MAX);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(field in any::<String>()) {
            parse([field.as_str()]);
        }

        #[test]
        fn near_misses_are_survived(field in r#"([ ,="\\a-cB~/]|Basic |Bearer ){0,40}"#) {
            prop_assert!(parse([field.as_str()]).len() <= CHALLENGES_MAX);
        }

        #[test]
        fn what_is_written_by_the_grammar_is_read_back(
            written in prop::collection::vec(
                ("[A-Za-z]{1,8}", prop::collection::vec(("[a-z_]{1,8}", any::<String>()), 0..5)),
                0..5,
            )
        ) {
            let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let field = written
                .iter()
                .map(|(scheme, parameters)| {
                    let list: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={}", quote(value))).collect();
                    format!("{scheme} {}", list.join(", "))
                })
                .collect::<Vec<_>>()
                .join(", ");
            prop_assume!(field.len() <= FIELD_MAX);
            let expected: Vec<_> = written
                .iter()
                .map(|(scheme, parameters)| Challenge { scheme: scheme.to_lowercase(), parameters: parameters.clone() })
                .collect();
            prop_assert_eq!(parse([field.as_str()]), expected);
        }
    }
}
