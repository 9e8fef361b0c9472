//! What was perhaps meant.

/// A hint for a word that is not known: the nearest one, or all.
pub(crate) fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let near = known
        .iter()
        .map(|one| (distance(&text.to_lowercase(), &one.to_lowercase()), *one))
        .filter(|(distance, one)| *distance <= one.len().div_ceil(3))
        .min();
    match near {
        Some((_, one)) => format!("did you mean {one:?}?"),
        None => format!("there are: {}", known.join(", ")),
    }
}

/// How many characters to add, remove, change or swap with the next; of long texts, too many.
fn distance(one: &str, other: &str) -> usize {
    const LONG: usize = 64;
    let (one, other): (Vec<_>, Vec<_>) = (one.chars().collect(), other.chars().collect());
    if one.len() > LONG || other.len() > LONG {
        return LONG;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for (index, a) in one.iter().enumerate() {
        let mut row = vec![index + 1];
        for (column, b) in other.iter().enumerate() {
            let changed = rows[index][column] + usize::from(a != b);
            let mut least = changed.min(row[column] + 1).min(rows[index][column + 1] + 1);
            let is_swap =
                index > 0 && column > 0 && *a == other[column - 1] && one[index - 1] == *b;
            if is_swap {
                least = least.min(rows[index - 1][column - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}
