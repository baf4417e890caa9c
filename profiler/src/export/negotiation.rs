//! Which representation a scrape gets: the format by `Accept`, the compression by
//! `Accept-Encoding`. Whoever asks for nothing that is known gets the text format 0.0.4, plain.

use hyper::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderName};

/// How the series are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4.
    Text,
    /// OpenMetrics 1.0: the same series, with units and exemplars.
    OpenMetrics,
}

/// How the body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// By gzip.
    Gzip,
}

impl Format {
    /// For the header of the same name.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The best one that the client takes; of equals the one it names first.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut best = (0.0, Self::Text);
        for item in items(headers, &ACCEPT) {
            if let (Some(quality), Some(format)) = (item.quality(), Self::named(&item))
                && quality > best.0
            {
                best = (quality, format);
            }
        }
        best.1
    }

    /// Other parameters, such as `escaping`, change nothing: all names are of the old alphabet.
    fn named(item: &Item<'_>) -> Option<Self> {
        let version = item.parameter("version");
        match item.name.to_ascii_lowercase().as_str() {
            "application/openmetrics-text" => version
                .is_none_or(|v| v == "1.0.0")
                .then_some(Self::OpenMetrics),
            "text/plain" => version.is_none_or(|v| v == "0.0.4").then_some(Self::Text),
            "text/*" | "*/*" => Some(Self::Text),
            _ => None,
        }
    }
}

impl Encoding {
    /// Gzip where the client takes it.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let takes_gzip = items(headers, &ACCEPT_ENCODING).any(|item| {
            let named = item.name.eq_ignore_ascii_case("gzip");
            named && item.quality().is_some_and(|quality| quality > 0.0)
        });
        if takes_gzip {
            Self::Gzip
        } else {
            Self::Identity
        }
    }
}

/// One thing that a client takes.
struct Item<'a> {
    name: &'a str,
    parameters: &'a str,
}

impl<'a> Item<'a> {
    fn parameter(&self, wanted: &str) -> Option<&'a str> {
        self.parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            let named = name.trim().eq_ignore_ascii_case(wanted);
            named.then(|| value.trim().trim_matches('"'))
        })
    }

    /// 1 if it says nothing; `None` for what is no quality.
    fn quality(&self) -> Option<f32> {
        let Some(quality) = self.parameter("q") else {
            return Some(1.0);
        };
        let quality = quality.parse().ok()?;
        (0.0..=1.0).contains(&quality).then_some(quality)
    }
}

fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Item<'a>> {
    let texts = headers.get_all(name).into_iter();
    let items = texts
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    items.map(|item| {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        Item {
            name: name.trim(),
            parameters,
        }
    })
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn format(accept: &str) -> Format {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        Format::of(&headers)
    }

    fn encoding(accept: &str) -> Encoding {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_str(accept).unwrap());
        Encoding::of(&headers)
    }

    #[test]
    fn prometheus_gets_openmetrics_and_who_asks_for_nothing_known_the_old_text() {
        for accept in [
            // 2.42, 2.42 with native histograms, 3.8.
            "application/openmetrics-text;version=1.0.0,\
             application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
             application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.9,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "Application/OpenMetrics-Text",
            "text/plain;q=0.5, application/openmetrics-text; version=\"1.0.0\"; q=0.6",
        ] {
            assert_eq!(format(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "*/*",
            "",
            ",;q=,",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/json",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=0.4,text/plain;version=0.0.4;q=0.5",
            "text/plain,application/openmetrics-text",
        ] {
            assert_eq!(format(accept), Format::Text, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()), Format::Text);
    }

    #[test]
    fn what_a_client_takes_may_stand_in_several_headers() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT, HeaderValue::from_static("text/plain;q=0.2"));
        let second = HeaderValue::from_static("application/openmetrics-text;q=0.3");
        headers.append(ACCEPT, second);
        assert_eq!(Format::of(&headers), Format::OpenMetrics);
    }

    #[test]
    fn only_who_takes_gzip_gets_it() {
        for accept in ["gzip", "deflate, GZIP;q=0.5", "br;q=1.0, gzip;q=0.001"] {
            assert_eq!(encoding(accept), Encoding::Gzip, "{accept}");
        }
        for accept in ["", "identity", "gzip;q=0", "gzip;q=0.000, br", "gzipped"] {
            assert_eq!(encoding(accept), Encoding::Identity, "{accept}");
        }
        assert_eq!(Encoding::of(&HeaderMap::new()), Encoding::Identity);
    }
}
