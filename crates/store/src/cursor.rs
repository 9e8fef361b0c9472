//! Places in a listing, as callers carry them: the number of the last item that they got.

use api::Page;

use crate::StoreError;

pub(crate) fn parse(cursor: Option<&str>) -> Result<Option<i64>, StoreError> {
    let Some(text) = cursor else { return Ok(None) };
    let plain = (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !plain {
        return Err(StoreError::Cursor);
    }
    text.parse().map(Some).map_err(|_| StoreError::Cursor)
}

/// A page of `limit` items out of up to one more, each with its number.
pub(crate) fn page<T>(mut items: Vec<(i64, T)>, limit: u32) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|(number, _)| number.to_string());
    Page { items: items.into_iter().map(|(_, item)| item).collect(), next_cursor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_number() {
        assert_eq!(parse(None).unwrap(), None);
        assert_eq!(parse(Some("17")).unwrap(), Some(17));
        for text in ["", "-1", "+1", "1a", "9999999999999999999", " 1"] {
            assert!(matches!(parse(Some(text)), Err(StoreError::Cursor)), "{text}");
        }
    }

    #[test]
    fn only_a_page_that_is_not_the_last_has_a_cursor() {
        let page = |count: i64| page((0..count).map(|n| (n, ())).collect(), 2).next_cursor;
        assert_eq!(page(2), None);
        assert_eq!(page(3).as_deref(), Some("1"));
        assert_eq!(page(0), None);
    }
}
