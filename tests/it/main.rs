//! Integration tests: one binary, one sentence a module.
//!
//! Tests that need a Debian package fail with its name when it is not there; none is skipped in silence.

/// Helpers: servers and tools that tests start, and that end with them.
mod support;

/// The registry client against a server that misbehaves on purpose: breaks, redirects, proxies.
mod registry;
/// Who is told which secret: Basic, token servers, and what of it shows.
mod registry_auth;
/// The registry client against Debian's `docker-registry`: anonymous, htpasswd, TLS with a private authority, tokens.
mod registry_real;
