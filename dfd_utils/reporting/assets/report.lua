-- pandoc filter: turns the cells of executed notebooks into the chapters of a report (HTML, Typst).
-- export.py marks a notebook's first cell with the attribute `chapter` (its file stem).

local in_pdf = FORMAT:match("typst") ~= nil
local text_of = pandoc.utils.stringify
local show_code = false
local code_width = 100 -- characters that fit across A4 in the small type of the code

local function typst(code) return pandoc.RawBlock("typst", code) end

local function quoted(text) return '"' .. text:gsub("%s+", " "):gsub('[\\"]', "\\%0") .. '"' end

local function is_address(source) return source:match("^%a[%w+.-]*:") ~= nil end

-- 1. Raw pieces: HTML outputs, display(Markdown(...)), LaTeX ------------------------------------

-- Reads no other file and no address, whatever the text asks for: `\input`, `<iframe>`.
local function read_sandboxed(text, format) return pandoc.read(text .. "\n", format, nil, {}).blocks end

local function rows_of(el)
  local head, body = pandoc.List(el.head.rows), pandoc.List()
  for _, part in ipairs(el.bodies) do
    body:extend(part.head)
    body:extend(part.body)
  end
  return head, body
end

local function read_html(html)
  return read_sandboxed(html:gsub("<style.->.-</style>", ""), "html"):walk {
    Table = function(el)
      local head, body = rows_of(el)
      for _, row in ipairs(head .. body) do
        for _, cell in ipairs(row.cells) do cell.attr = pandoc.Attr() end -- pandas' ids and classes
      end
      el.attr = pandoc.Attr("", { "dataframe" })
      return el
    end,
    Div = function(el) return el.content end, -- pandas wraps its tables
  }
end

-- Markdown that a cell has computed may contain names from data: HTML in it is text.
local function read_markdown(text)
  return read_sandboxed(text, "gfm+tex_math_dollars"):walk {
    RawInline = function(el) return pandoc.Str(el.text) end,
    RawBlock = function(el) return pandoc.Para { pandoc.Str(el.text) } end,
  }
end

local raw = {
  Link = function(el) -- a badge: a link that is an image from elsewhere
    local only = #el.content == 1 and el.content[1]
    if only and only.t == "Image" and is_address(only.src) then return {} end
  end,
  RawBlock = function(el)
    if el.format == "markdown" then
      return read_markdown(el.text)
    elseif el.format == "html" then
      return read_html(el.text)
    elseif el.format == "latex" or el.format == "tex" then
      return read_sandboxed(el.text, "latex")
    end
  end,
  RawInline = function(el)
    if el.format == "tex" or el.format == "latex" then
      local formula = el.text:match("^\\begin{") -- Jupyter shows a bare environment as a formula
      return formula and pandoc.Math("DisplayMath", el.text) or pandoc.Str(el.text)
    elseif el.format == "html" and el.text:match("^<img") then
      return pandoc.utils.blocks_to_inlines(read_sandboxed(el.text, "html"))
    elseif el.format == "html" and el.text:match("^<script") then
      return {}
    end
  end,
}

-- 2. Elements: formulas, images, tables, code ---------------------------------------------------

local function is_number(text)
  return text:match("^[%d%s.,+%%eE()%[%]×±−–—-]*$")
    or text:match("^[+-]?nan$")
    or text:match("^[+-]?inf$")
end

-- Columns of numbers are aligned to the right. They are counted from the right, because pandas omits
-- index cells that a cell above spans.
local function align_numbers(el)
  local head, body = rows_of(el)
  local columns, holds_text, holds_digit = #el.colspecs, {}, {}
  local function each(rows, visit)
    for _, row in ipairs(rows) do
      local column = columns + 1
      for i = #row.cells, 1, -1 do
        column = column - row.cells[i].col_span
        visit(row.cells[i], column)
      end
    end
  end
  each(body, function(cell, column)
    local text = text_of(cell.contents)
    if not is_number(text) then holds_text[column] = true end
    if text:match("%d") then holds_digit[column] = true end
  end)
  for i, spec in ipairs(el.colspecs) do
    local alignment = spec[1]
    if alignment == pandoc.AlignDefault then
      local right = holds_digit[i] and not holds_text[i]
      alignment = right and pandoc.AlignRight or pandoc.AlignLeft
    end
    el.colspecs[i] = { alignment } -- no width: that of a long Markdown row means nothing
  end
  each(head, function(cell)
    if cell.col_span > 1 then cell.alignment = pandoc.AlignCenter end
  end)
  return el
end

-- Breaks lines that are longer than the page, after a space or comma if one is near.
local function wrap_code(text)
  return (text:gsub("[^\n]+", function(line)
    local lines = {}
    while utf8.len(line) and utf8.len(line) > code_width do
      local piece = line:sub(1, utf8.offset(line, code_width + 1) - 1)
      local stop = piece:match(".*[%s,;]()") or 0
      if stop > 0.7 * code_width then piece = piece:sub(1, stop - 1) end
      table.insert(lines, piece)
      line = line:sub(#piece + 1)
    end
    table.insert(lines, line)
    return table.concat(lines, "\n")
  end))
end

-- In the PDF, paths and long names may break; in a wide table, long names of columns do.
local function allow_breaks(el)
  for _, row in ipairs(#el.colspecs > 8 and el.head.rows or {}) do
    for _, cell in ipairs(row.cells) do
      cell.contents = cell.contents:walk {
        Str = function(str)
          local first, rest = str.text:match("^(.....-_)(.+)$")
          return first and { pandoc.Str(first), pandoc.LineBreak(), pandoc.Str(rest) }
        end,
      }
    end
  end
  return el:walk {
    Str = function(str) return pandoc.Str((str.text:gsub("[/_]", "%0\u{200b}"))) end,
  }
end

local elements = {
  Math = function(el)
    if in_pdf then
      el.text = el.text:gsub("\\!", "") -- the Typst writer turns it into a wide gap
      local formula = pandoc.write(pandoc.Pandoc { pandoc.Plain { el } }, "typst"):gsub("%s+$", "")
      if not formula:match("^%$") then return el end -- it could not be converted
      local block = el.mathtype == "DisplayMath" and "true" or "false"
      local call = "#math.equation(block: %s, alt: %s, %s)" -- the alternative text is for screen readers
      return pandoc.RawInline("typst", call:format(block, quoted(el.text), formula))
    end
  end,
  Image = function(el)
    if is_address(el.src) and not el.src:match("^data:") and not el.src:match("^attachment:") then
      return el.caption -- a report fetches nothing
    end
    if not pcall(pandoc.mediabag.fetch, el.src) then
      if not in_pdf then -- warn once
        io.stderr:write("report: image " .. el.src .. " is missing; its description is used instead\n")
      end
      return el.caption
    end
  end,
  Table = function(el)
    if in_pdf then el = allow_breaks(el) end
    return align_numbers(el)
  end,
  CodeBlock = function(el)
    if in_pdf then el.text = wrap_code(el.text) end
    return el
  end,
}

-- 3. The report: chapters, captions, links ------------------------------------------------------

local function slug(text)
  local plain = text:lower():gsub("[^%w%s_\128-\255-]", "")
  return (plain:gsub("%s+", "-"))
end

local function framed(kind, block)
  if not in_pdf then return pandoc.Blocks { pandoc.Div(block, pandoc.Attr("", { kind })) } end
  return pandoc.Blocks { typst("#" .. kind .. "["), block, typst("]") }
end

-- Code is folded in the HTML; the PDF has it only if it is asked for.
local function source(block)
  if in_pdf then return show_code and framed("source", block) or pandoc.Blocks {} end
  local open = '<details class="source"><summary>Code</summary>'
  return pandoc.Blocks { pandoc.RawBlock("html", open), block, pandoc.RawBlock("html", "</details>") }
end

-- The blocks of a cell and its outputs; code and text outputs are framed.
local function blocks_of(cell)
  if not cell.classes:includes("code") then return cell.content end
  local blocks = pandoc.Blocks {}
  for i, block in ipairs(cell.content) do
    if block.t == "CodeBlock" and i == 1 then
      if block.text:match("%S") then blocks:extend(source(block)) end
    elseif block.t == "Div" and block.classes:includes("output") then
      for _, inner in ipairs(block.content) do
        if inner.t == "CodeBlock" then
          inner.classes = {}
          blocks:extend(framed("textout", inner))
        else
          blocks:insert(inner)
        end
      end
    else
      blocks:insert(block)
    end
  end
  return blocks
end

local function lone_image(block)
  if (block.t == "Para" or block.t == "Plain") and #block.content == 1 then
    local only = block.content[1]
    return only.t == "Image" and only or nil
  end
end

local function is_formula(block)
  return block.t == "Para" and #block.content == 1 and block.content[1].mathtype == "DisplayMath"
end

local function is_caption(block)
  local first = block.t == "Para" and block.content[1]
  return first and first.t == "Strong" and text_of(first):match("^%a+%s[%w.]*%d")
    and (text_of(first):match("^Figure") or text_of(first):match("^Table")) ~= nil
end

local function captioned(block, caption)
  local kind = block.t == "Table" and "table" or "image"
  local image = lone_image(block)
  if in_pdf then
    local said = image and ("(alt: %s)"):format(quoted(text_of(caption or image.caption))) or ""
    local parts = pandoc.Blocks { typst("#captioned-" .. kind .. said .. "["), block, typst("][") }
    if caption then parts:insert(pandoc.Plain(caption)) end
    parts:insert(typst("]"))
    return parts
  end
  if image and caption then image.caption = { pandoc.Str(text_of(caption)) } end
  local body = image and pandoc.Plain { image } or pandoc.Div(block, pandoc.Attr("", { "scroll" }, { tabindex = "0" }))
  if not caption then return pandoc.Blocks { pandoc.Div(body, pandoc.Attr("", { kind })) } end
  local long = { long = { pandoc.Plain(caption) } }
  return pandoc.Blocks { pandoc.Figure(body, long, pandoc.Attr("", { kind })) }
end

-- A paragraph `**Figure 2.1.** …` or `**Table 2.1.** …` belongs to the image or table before it.
local function with_captions(blocks)
  local result, skip = pandoc.Blocks {}, false
  for i, block in ipairs(blocks) do
    local following = blocks[i + 1]
    if skip then
      skip = false
    elseif block.t == "Table" or lone_image(block) then
      skip = following ~= nil and is_caption(following)
      result:extend(captioned(block, skip and following.content or nil))
    elseif is_caption(block) then
      result:extend(framed("caption", block))
    elseif not in_pdf and is_formula(block) then -- a wide one scrolls, with the keyboard as well
      result:insert(pandoc.Div(block, pandoc.Attr("", { "formula" }, { tabindex = "0" })))
    else
      result:insert(block)
    end
  end
  return result
end

-- A single cell: links to other notebooks lead to the HTML files beside it.
local function fragment(doc)
  doc.blocks = blocks_of(doc.blocks[1])
  return doc:walk {
    Header = function(el)
      el.identifier = slug(text_of(el))
      return el
    end,
    Link = function(el)
      if not is_address(el.target) then
        el.target = el.target:gsub("%.ipynb", ".html"):gsub("#(.*)$", function(id) return "#" .. slug(id) end)
      end
      return el
    end,
  }
end

-- Ids are `<notebook>` and `<notebook>-<heading>`, because headings repeat from notebook to notebook.
-- Links are rewritten accordingly, and those without a target become plain text.
local function assemble(doc)
  show_code = doc.meta["with-code"] ~= nil
  if text_of(doc.meta.pagetitle or "") == "fragment" then return fragment(doc) end
  local blocks, taken, chapter, has_title = pandoc.Blocks {}, {}, "", false
  local function unique(id)
    local free, n = id, 1
    while taken[free] do
      n = n + 1
      free = id .. "-" .. n
    end
    taken[free] = true
    return free
  end
  if doc.blocks[1] and doc.blocks[1].attributes.front then
    doc.meta.front = pandoc.MetaBlocks(with_captions(blocks_of(table.remove(doc.blocks, 1))))
  end
  for _, cell in ipairs(doc.blocks) do
    if cell.attributes.chapter then
      chapter, has_title = slug(cell.attributes.chapter), false
      if in_pdf and not show_code and cell.attributes.notebook then
        local where = "The code of this chapter is in notebooks/" .. cell.attributes.notebook .. "."
        cell.content:insert(math.min(2, #cell.content + 1), pandoc.Para { pandoc.Emph(where) })
      end
    end
    blocks:extend(blocks_of(cell):walk {
      Header = function(el)
        local opens = el.level == 1 and not has_title
        has_title = has_title or opens
        if el.level == 1 and not opens then el.level = 2 end
        el.attr = pandoc.Attr(unique(opens and chapter or chapter .. "-" .. slug(text_of(el))))
        return el
      end,
      Link = function(el)
        local notebook, section = el.target:match("^([^#?]*)%.ipynb#?(.*)$")
        if is_address(el.target) then
          return nil
        elseif notebook then
          notebook = slug(notebook:gsub("^.*/", ""))
          el.target = "#" .. notebook .. (section ~= "" and "-" .. slug(section) or "")
          el.attributes.otherwise = "#" .. notebook
        elseif el.target:match("^#") then
          el.target = "#" .. chapter .. "-" .. slug(el.target:sub(2))
        end
        return el
      end,
    })
  end
  doc.blocks = with_captions(blocks):walk {
    Link = function(el)
      local otherwise = el.attributes.otherwise
      el.attributes.otherwise = nil
      for _, target in ipairs { el.target, otherwise } do
        if is_address(target) or taken[target:sub(2)] then
          el.target = target
          return el
        end
      end
      return el.content
    end,
  }
  return doc
end

return { raw, elements, { Pandoc = assemble } }
