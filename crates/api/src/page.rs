//! Listings in pages.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::bound::{self, Cursor, PageLimit, Schemas};
use crate::{Problem, Validate};

/// A part of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// What it holds, in the listing's order.
    pub items: Vec<T>,
    /// `cursor` of the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// The only page.
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next_cursor: None }
    }

    /// The same page of other items.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(change).collect(), next_cursor: self.next_cursor }
    }
}

impl<T: ToSchema> PartialSchema for Page<T> {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .property("items", ArrayBuilder::new().items(Ref::from_schema_name(T::name())))
            .required("items")
            .property(
                "next_cursor",
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some("`cursor` of the next page; absent on the last.")),
            )
            .description(Some("A part of a listing."))
            .into()
    }
}

impl<T: ToSchema> ToSchema for Page<T> {
    fn name() -> Cow<'static, str> {
        format!("{}Page", T::name()).into()
    }

    fn schemas(schemas: &mut Schemas) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
}

/// No query at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}

impl Validate for NoQuery {
    fn validate(&self) -> Result<(), Problem> {
        Ok(())
    }
}

/// Which part of a listing that has no filters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Cursor>, nullable = false)]
    pub cursor: Option<String>,
    /// Most items; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub limit: Option<u32>,
}

impl PageQuery {
    /// Items of a page when the caller does not say.
    pub const LIMIT: u32 = 100;
}

impl Validate for PageQuery {
    fn validate(&self) -> Result<(), Problem> {
        check(self.cursor.as_deref(), self.limit)
    }
}

pub(crate) fn check(cursor: Option<&str>, limit: Option<u32>) -> Result<(), Problem> {
    Cursor::check_some("cursor", cursor)?;
    PageLimit::check_some("limit", limit)
}
