// A request to the service, and as a command or a program that makes the same one.
import { isDefault } from "./dom.js";

export const PATH = "v1/images/generations";

const address = () => new URL(PATH, document.baseURI).href;

/** The fields of a request; what is the default is left out. */
export function body({ n, solver, steps, seed, guidance, labels, prompt }, model) {
  return {
    ...(prompt ? { prompt } : {}),
    ...(labels.length ? { label: labels.slice(0, n).map((each) => known(each, model.labels)).join(",") } : {}),
    n,
    ...(isDefault({ solver, steps }, model) ? {} : { solver, steps }),
    seed,
    ...(guidance === 1 ? {} : { guidance }),
  };
}

/** A class as the service takes it: by its number where its own name has commas, which stand between classes. */
const known = (name, { classes }) => (name.includes(",") ? String(classes.indexOf(name)) : name);

const inShell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A command that saves the pictures. */
export function curl(request, model) {
  const token = model.needsToken ? ` \\\n    -H "Authorization: Bearer $DDPM_DEPLOY_TOKEN"` : "";
  const save = 'import base64, json, sys\nfor i, each in enumerate(json.load(sys.stdin)["data"]):\n' +
    '    open(f"picture-{i}.png", "wb").write(base64.b64decode(each["b64_json"]))';
  return `curl --fail-with-body -sS ${inShell(address())} \\
    -H 'Content-Type: application/json'${token} \\
    -d ${inShell(JSON.stringify(body(request, model)))} |
python3 -c ${inShell(save)}
`;
}

/** A program of Python's own library that saves the pictures. */
export function python(request, model) {
  const token = model.needsToken ? `, "Authorization": "Bearer " + os.environ["DDPM_DEPLOY_TOKEN"]` : "";
  return `import base64, json, ${model.needsToken ? "os, " : ""}urllib.request

body = ${JSON.stringify(body(request, model))}
headers = {"Content-Type": "application/json"${token}}
request = urllib.request.Request(${JSON.stringify(address())}, json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as answer:
    pictures = json.load(answer)["data"]
for i, each in enumerate(pictures):
    with open(f"picture-{i}.png", "wb") as file:
        file.write(base64.b64decode(each["b64_json"]))
`;
}
