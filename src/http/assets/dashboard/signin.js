// The sign-in form. The key leaves the page in one request and is kept nowhere.
import { Component, createRef, html } from "./html.js";

export class SignIn extends Component {
  input = createRef();
  state = { error: "", isBusy: false };

  componentDidMount() {
    this.input.current.focus();
  }

  submit = async (event) => {
    event.preventDefault();
    const input = this.input.current;
    const key = input.value.trim();
    input.value = "";
    if (!key) return this.setState({ error: "Enter a key." });
    this.setState({ isBusy: true, error: "" });
    const error = await this.props.store.signIn(key);
    this.setState({ isBusy: false, error });
    if (error) input.focus();
  };

  render(_, { error, isBusy }) {
    return html`<main class="signin">
      <h2>Sign in</h2>
      <p>This bridge needs an API key or a Kubernetes token. The administrators of the bridge have one for you.</p>
      <form onSubmit=${this.submit}>
        <label class="field">
          <span>API key or token</span>
          <input ref=${this.input} id="key" type="password" autocomplete="off" spellcheck=${false} aria-describedby="key-note" />
        </label>
        <button type="submit" disabled=${isBusy}>${isBusy ? "Signing in…" : "Sign in"}</button>
        <p role="alert" class="error">${error}</p>
      </form>
      <p id="key-note" class="note">
        The page exchanges the key for a session cookie of at most 12 hours. It does not keep the key.
      </p>
    </main>`;
  }
}
