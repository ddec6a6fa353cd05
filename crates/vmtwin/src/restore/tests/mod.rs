//! Tests of the whole recipe: made-up snapshots, and a guest that goes on.

mod fixture;
mod recipe;
mod run;
