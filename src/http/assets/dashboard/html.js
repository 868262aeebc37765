// The template function of all views. Everything in a template becomes text or an attribute, never HTML.
import { h } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { Component, createRef, render } from "./vendor/preact.js";
export const html = htm.bind(h);
