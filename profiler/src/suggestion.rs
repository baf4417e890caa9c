//! The name that was probably meant by one that nobody knows.

/// So like another a name must be to be taken for it.
const ALIKE: f64 = 0.8;

/// The name that is most like this one, if any is.
pub(crate) fn closest<'a>(name: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    among
        .map(|known| (known, strsim::jaro_winkler(name, known)))
        .filter(|(_, likeness)| *likeness >= ALIKE)
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .map(|(known, _)| known)
}

/// What serde says of a field that is not known: its name, and the one that was probably meant of those that it
/// lists.
pub(crate) fn unknown_field(message: &str) -> Option<(&str, Option<&str>)> {
    let (unknown, listed) = message.strip_prefix("unknown field `")?.split_once('`')?;
    let is_part = |sign: char| sign.is_alphanumeric() || "_-".contains(sign);
    let names = listed.split(|sign| !is_part(sign));
    Some((
        unknown,
        closest(unknown, names.filter(|name| !name.is_empty())),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_answered_and_another_word_is_not() {
        let listed =
            |name: &str| format!("unknown field `{name}`, expected one of `ports`, `names`");
        assert_eq!(
            unknown_field(&listed("port")),
            Some(("port", Some("ports")))
        );
        assert_eq!(
            unknown_field(&listed("nmaes")),
            Some(("nmaes", Some("names")))
        );
        assert_eq!(unknown_field(&listed("colour")), Some(("colour", None)));
        assert_eq!(unknown_field("invalid type: string"), None);
    }
}
