//! What somebody may have meant who typed a name that nobody knows.

/// The name that is most similar to `typed`, if one is similar.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let rated = known.into_iter().map(|known| (strsim::jaro_winkler(typed, known), known));
    let (similarity, best) = rated.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (similarity > 0.75).then_some(best)
}

/// The name that `typed` is with a letter or two mistyped. Of a short one only a letter that is
/// missing or too many counts: with another letter in its place it is likely to be another name.
pub fn mistyped<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let is_short = typed.len() < 8;
    let allowed = if is_short { 1 } else { 2 };
    known.into_iter().find(|known| {
        (1..=allowed).contains(&strsim::damerau_levenshtein(typed, known))
            && !(is_short && typed.len() == known.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_are_found() {
        let known = ["cache-size", "filer", "uid", "gid"];
        assert_eq!(nearest("cachesize", known), Some("cache-size"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(mistyped("cache-siez", known), Some("cache-size"));
        assert_eq!(mistyped("fieler", known), Some("filer"));
        // Other programs have variables of their own.
        for other in ["bin", "pid", "port", "service-host", "cache-size", "cache"] {
            assert_eq!(mistyped(other, known), None, "{other}");
        }
    }
}
