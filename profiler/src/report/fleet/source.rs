//! Where a fleet's series are, how to get in, and which of them are meant.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};

use super::period::{Moment, Period, PeriodError};

/// A fleet instead of a recording.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "A fleet instead of a recording (needs dashboards/rules.yaml there)")]
pub struct FleetSource {
    /// Address of Prometheus, VictoriaMetrics, Thanos or Mimir, up to /api/v1; may hold user:password@
    #[arg(long, value_name = "URL", requires = "from", conflicts_with = "file")]
    prometheus: Option<Address>,
    /// Start: RFC 3339 (2026-11-01T00:00:00Z), Unix seconds, or so long ago (30d, 12h)
    #[arg(long, value_name = "T", conflicts_with = "file")]
    from: Option<Moment>,
    /// End, likewise, or now: the last five minutes that are recorded
    #[arg(long, value_name = "T", conflicts_with = "file", default_value = "now")]
    to: Option<Moment>,
    /// Only series with this label, e.g. 'cluster="a"'; =, !=, =~ or !~; may be repeated
    #[arg(
        id = "match",
        long = "match",
        value_name = "MATCHER",
        conflicts_with = "file"
    )]
    matchers: Vec<Matcher>,
    /// A header of each question, e.g. 'X-Scope-OrgID: team'; may be repeated
    #[arg(long, value_name = "NAME: VALUE", conflicts_with = "file", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// User, and the file with the password
    #[arg(long, value_name = "USER:FILE", conflicts_with = "file", value_parser = user)]
    basic_auth: Option<(String, PathBuf)>,
    /// File with the token
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["file", "basic_auth"]
    )]
    bearer_token_file: Option<PathBuf>,
    /// PEM file with the certificates to trust, instead of the machine's
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    ca_file: Option<PathBuf>,
    /// How long one question may take; a report has at most 60
    #[arg(long, value_name = "SECONDS", conflicts_with = "file", default_value = "60", value_parser = timeout)]
    timeout: Option<Duration>,
}

impl FleetSource {
    pub(super) const fn address(&self) -> Option<&Address> {
        self.prometheus.as_ref()
    }

    pub(super) fn period(&self, now: i64) -> Result<Period, PeriodError> {
        let ago = Moment::Ago;
        Period::new(self.from.unwrap_or(ago(0)), self.to.unwrap_or(ago(0)), now)
    }

    pub(super) fn matchers(&self) -> &[Matcher] {
        &self.matchers
    }

    pub(super) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.header
    }

    pub(super) const fn basic_auth(&self) -> Option<&(String, PathBuf)> {
        self.basic_auth.as_ref()
    }

    pub(super) const fn bearer_token_file(&self) -> Option<&PathBuf> {
        self.bearer_token_file.as_ref()
    }

    pub(super) const fn ca_file(&self) -> Option<&PathBuf> {
        self.ca_file.as_ref()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(60))
    }

    /// The address without its password.
    pub fn shown(&self) -> String {
        self.prometheus
            .as_ref()
            .map_or_else(String::new, Address::shown)
    }

    /// The matchers for an error.
    pub(super) fn matched(&self) -> String {
        let texts: Vec<&str> = self.matchers.iter().map(Matcher::text).collect();
        match texts.as_slice() {
            [] => String::new(),
            texts => format!(" where {}", texts.join(", ")),
        }
    }
}

/// An address with what its user part says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) is_tls: bool,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As the header Host has it.
    pub(super) authority: String,
    /// Without a `/` at its end.
    pub(super) path: String,
    pub(super) user: Option<(String, String)>,
}

impl Address {
    fn shown(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, self.path)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!("{what}; an address is like http://prometheus:9090 or https://host/prometheus")
        };
        let uri: Uri = text.parse().map_err(|error| wrong(&format!("{error}")))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("it begins with neither http:// nor https://")),
        };
        if uri.query().is_some() {
            return Err(wrong("nothing may stand behind a ?"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("there is no host"))?;
        let (user, authority) = match authority.as_str().rsplit_once('@') {
            None => (None, authority.as_str()),
            Some((user, authority)) => {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                (Some((decoded(user)?, decoded(password)?)), authority)
            }
        };
        let host = uri.host().unwrap_or_default();
        Ok(Self {
            is_tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            authority: authority.to_owned(),
            path: uri
                .path()
                .trim_end_matches('/')
                .trim_end_matches("/api/v1")
                .to_owned(),
            user,
        })
    }
}

/// Without its %XX.
fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| "the user or the password is no UTF-8".to_owned())
}

/// A matcher in PromQL's own form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matcher {
    text: String,
    label: String,
}

impl Matcher {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether series of models and types of GPUs cannot have its label.
    pub(super) fn is_of_nodes(&self) -> bool {
        matches!(self.label.as_str(), "job" | "instance")
    }
}

impl FromStr for Matcher {
    type Err = String;

    /// What it lets through cannot end the selector that it is put in.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |what: &str| format!("{what}; a matcher is like cluster=\"a\" or instance=~\"gpu-.*\"");
        let text = text.trim();
        let end = text
            .find(|character: char| !character.is_ascii_alphanumeric() && character != '_')
            .unwrap_or(text.len());
        let (label, rest) = text.split_at(end);
        if label.is_empty() || label.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(wrong("it begins with no label's name"));
        }
        if label == "__name__" {
            return Err(wrong("the report chooses the series' names itself"));
        }
        let value = ["=~", "!~", "!=", "="]
            .iter()
            .find_map(|operator| rest.strip_prefix(operator))
            .ok_or_else(|| wrong("behind the label must stand =, !=, =~ or !~"))?;
        let inside = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .ok_or_else(|| wrong("the value must stand in double quotes (and the whole in single ones for the shell)"))?;
        let mut escaped = false;
        for character in inside.chars() {
            match character {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' | '\n' => return Err(wrong("a quote in the value needs a \\ before it")),
                _ => {}
            }
        }
        if escaped {
            return Err(wrong("the value ends in a \\"));
        }
        Ok(Self {
            text: text.to_owned(),
            label: label.to_owned(),
        })
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = |what: String| format!("{what}; a header is like 'X-Scope-OrgID: team'");
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| wrong("there is no :".to_owned()))?;
    let name = HeaderName::from_str(name.trim()).map_err(|error| wrong(error.to_string()))?;
    let mut value =
        HeaderValue::from_str(value.trim()).map_err(|error| wrong(error.to_string()))?;
    // Often a secret: no log shows it.
    value.set_sensitive(true);
    Ok((name, value))
}

fn user(text: &str) -> Result<(String, PathBuf), String> {
    let (user, file) = text
        .split_once(':')
        .ok_or("USER:FILE is needed: the user, and the file with the password")?;
    Ok((user.to_owned(), PathBuf::from(file)))
}

fn timeout(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text.parse().map_err(|error| format!("{error}"))?;
    match seconds {
        0 => Err("at least one second is needed".to_owned()),
        seconds => Ok(Duration::from_secs(seconds.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_user_and_its_prefix() {
        let plain: Address = "http://prom:9090".parse().unwrap();
        assert_eq!(
            (plain.host.as_str(), plain.port, plain.path.as_str()),
            ("prom", 9_090, "")
        );
        let full: Address = "https://me:a%40b@[::1]/prometheus/".parse().unwrap();
        assert_eq!((full.host.as_str(), full.port), ("::1", 443));
        assert_eq!(
            (full.path.as_str(), full.authority.as_str()),
            ("/prometheus", "[::1]")
        );
        assert_eq!(full.user, Some(("me".to_owned(), "a@b".to_owned())));
        assert_eq!(full.shown(), "https://[::1]/prometheus");
        for (text, told) in [
            ("prom:9090", "neither http://"),
            ("ftp://prom", "neither http://"),
            ("http://prom/graph?g0=1", "behind a ?"),
            ("http://", "http://prometheus:9090"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn a_matcher_is_promqls_own_and_cannot_leave_its_selector() {
        for text in [
            "cluster=\"a\"",
            "cluster!=\"a\"",
            "instance=~\"gpu-(1|2).*\"",
            "dc!~\"x \\\"y\\\" }\"",
        ] {
            assert_eq!(text.parse::<Matcher>().unwrap().text(), text);
        }
        for (text, told) in [
            ("cluster=a", "double quotes"),
            ("cluster", "must stand ="),
            ("=\"a\"", "no label's name"),
            ("__name__=\"up\"", "chooses"),
            ("a=\"b\",c=\"d\"", "needs a \\"),
            ("a=\"b\"} or up{c=\"\"", "needs a \\"),
            ("a=\"b\\\"", "ends in a \\"),
        ] {
            let error = text.parse::<Matcher>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn a_header_has_a_name_and_a_value() {
        let (name, value) = header("X-Scope-OrgID:  team").unwrap();
        assert_eq!(
            (name.as_str(), value.as_bytes()),
            ("x-scope-orgid", &b"team"[..])
        );
        assert!(value.is_sensitive());
        assert!(
            header("X-Scope-OrgID")
                .unwrap_err()
                .contains("X-Scope-OrgID: team")
        );
        assert!(header("a b: c").is_err());
    }
}
